#!/usr/bin/env python3
"""Prints the minimax coefficients of crates/cpu/src/math, lowest power first, and the base-2 logarithm of their error.

    pip install mpmath
    python coefficients.py
"""
import mpmath as m
from mpmath import mpf

m.mp.dps = 50
TINY = mpf(10) ** -12


def remez(name, f, weight, a, b, degree, grid=1500):
    """The polynomial p of `degree` with the least largest |weight * (f - p)| on [a, b]."""
    n = degree + 2
    at = lambda t: (a + b) / 2 - (b - a) / 2 * m.cos(m.pi * t)
    points = [at(mpf(i) / (n - 1)) for i in range(n)]
    dense = [at(mpf(i) / grid) for i in range(grid + 1)]
    values = [(f(x), weight(x)) for x in dense]
    for _ in range(12):
        rows, right = m.matrix(n, n), m.matrix(n, 1)
        for i, x in enumerate(points):
            for k in range(degree + 1):
                rows[i, k] = x**k
            rows[i, degree + 1], right[i] = (-1) ** i / weight(x), f(x)
        solution = m.lu_solve(rows, right)
        c = [solution[k] for k in range(degree + 1)]
        errors = [w * (v - m.polyval(c[::-1], x)) for x, (v, w) in zip(dense, values)]
        # The largest error of each run of one sign becomes a point of the next round.
        extremes, i = [], 0
        while i <= grid:
            j = best = i
            while j <= grid and (errors[j] > 0) == (errors[i] > 0):
                best = j if abs(errors[j]) > abs(errors[best]) else best
                j += 1
            extremes.append(best)
            i = j
        while len(extremes) > n:
            extremes.pop(0 if abs(errors[extremes[0]]) < abs(errors[extremes[-1]]) else -1)
        if len(extremes) < n:
            break
        points = [dense[i] for i in extremes]
    worst = max(map(abs, errors))
    print(f"{name}: 2^{float(m.log(worst, 2)):.1f}", [float(v) for v in c])


half_ln2 = m.log(2) / 2 * mpf("1.005")
square = (m.log(2) / 2 * mpf("1.01")) ** 2
quarter = (m.pi / 4 * mpf("1.001")) ** 2
knee, s = mpf("0.921875"), m.sqrt
remez("EXP", lambda r: (m.exp(r) - 1 - r) / r**2 if abs(r) > TINY else mpf(1) / 2, lambda r: r * r + mpf(10) ** -4, -half_ln2, half_ln2, 4)
remez("EXP2", lambda r: (2**r - 1) / r if abs(r) > TINY else m.log(2), lambda r: abs(r) + mpf(10) ** -3, -mpf("0.501"), mpf("0.501"), 5)
remez("COSH", lambda z: (m.cosh(s(z)) - 1) / z, lambda z: z, TINY, square, 2)
remez("SINH", lambda z: (m.sinh(s(z)) / s(z) - 1) / z, lambda z: z, TINY, square, 2)
remez("SIN", lambda z: (m.sin(s(z)) / s(z) - 1) / z, lambda z: z * s(z) / m.sin(s(z)), TINY, quarter, 3)
remez("COS", lambda z: ((m.cos(s(z)) - 1) / z + mpf(1) / 2) / z, lambda z: z * z / m.cos(s(z)), TINY, quarter, 3)
remez("ASIN", lambda z: (m.asin(s(z)) / s(z) - 1) / z, lambda z: z * s(z) / m.asin(s(z)), TINY, mpf("0.2502"), 7)
remez("ATAN", lambda z: (m.atan(s(z)) / s(z) - 1) / z, lambda z: z * s(z) / m.atan(s(z)), TINY, mpf(1), 11)
remez("LOG1P", lambda r: (m.log1p(r) - r) / r**2, lambda r: abs(r) + mpf(10) ** -6, mpf("-0.02875"), mpf("0.03117"), 4)
remez("SMALL", lambda z: m.erf(s(z)) / s(z) - 1, lambda z: s(z) / m.erf(s(z)), TINY, knee**2, 6)
remez("LOG_ERFC", lambda x: m.log(m.erfc(x)), lambda x: m.erfc(x) / m.erf(x), knee * mpf("0.999"), mpf("3.95"), 6)
