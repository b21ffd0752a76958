"""Fourier transforms, shifts, frequencies, short-time transforms."""

import numpy as np

from arrays import Arr, arr, lcg
from case import COMPOSED
from reduce import sample

TOL = {**COMPOSED, "float32": {"rtol": 1e-5, "atol": 1e-5}, "complex64": {"rtol": 1e-5, "atol": 1e-5}}
LAYOUTS = ["transposed", "strided", "reversed", "offset"]


def signal(shape, layout=None, dtype="complex64"):
    v = lcg("float32", shape, 3, -1.0, 1.0).wide
    return arr(dtype, v + (1j * lcg("float32", shape, 4, -1.0, 1.0).wide if dtype == "complex64" else 0), layout)


def build(f):
    one(f)
    several(f)
    helpers(f)
    stft(f)
    errors(f)


def one(f):
    for n in (1, 2, 3, 4, 7, 8, 12, 30):
        for op in ("fft", "ifft"):
            f.model(f"fft.{op}", [signal([n])], getattr(np.fft, op), tol=TOL)
        f.model("fft.rfft", [signal([n], dtype="float32")], np.fft.rfft, tol=TOL)
        if n > 1:
            f.model("fft.irfft", [signal([n])], np.fft.irfft, tol=TOL)
    for norm in ("ortho", "forward"):
        for op in ("fft", "ifft", "irfft"):
            f.model(f"fft.{op}", [signal([6])], lambda v, op=op: getattr(np.fft, op)(v, norm=norm), tol=TOL, norm=norm)
        f.model("fft.rfft", [signal([6], dtype="float32")], lambda v: np.fft.rfft(v, norm=norm), tol=TOL, norm=norm)
    for n in (3, 5, 9):
        for op in ("fft", "ifft", "irfft"):
            f.model(f"fft.{op}", [signal([2, 5])], lambda v, op=op: getattr(np.fft, op)(v, n), tol=TOL, n=n)
        f.model("fft.rfft", [signal([2, 5], dtype="float32")], lambda v: np.fft.rfft(v, n), tol=TOL, n=n)
    for layout in LAYOUTS:
        for axis in (0, 1, -1):
            f.model("fft.fft", [signal([3, 4, 2], layout)], lambda v: np.fft.fft(v, axis=axis), tol=TOL, axis=axis)
            f.model("fft.rfft", [signal([3, 4, 2], layout, "float32")], lambda v: np.fft.rfft(v, axis=axis), tol=TOL, axis=axis)
            f.model("fft.irfft", [signal([3, 4, 2], layout)], lambda v: np.fft.irfft(v, axis=axis), tol=TOL, axis=axis)
    for dtype in ("int32", "float16", "bfloat16", "float64", "bool"):
        f.model("fft.fft", [sample(dtype, [6])], lambda v: np.fft.fft(v.astype(float)), tol=TOL)
    f.model("fft.fft", [signal([100])], np.fft.fft, tol={"rtol": 1e-5, "atol": 5e-5}, every=7)
    f.model("fft.fft", [signal([257])], np.fft.fft, tol={"rtol": 1e-5, "atol": 1e-4}, every=13)


def several(f):
    for op in ("fft2", "ifft2", "fftn", "ifftn"):
        f.model(f"fft.{op}", [signal([2, 3, 4])], getattr(np.fft, op), tol=TOL)
    for op in ("rfft2", "rfftn"):
        f.model(f"fft.{op}", [signal([2, 3, 4], dtype="float32")], getattr(np.fft, op), tol=TOL)
    for op in ("irfft2", "irfftn"):
        f.model(f"fft.{op}", [signal([2, 3, 4])], getattr(np.fft, op), tol=TOL)
    f.model("fft.fftn", [signal([2, 3, 4], "transposed")], lambda v: np.fft.fftn(v, axes=[0, 2]), tol=TOL, axes=[0, 2])
    f.model("fft.fft2", [signal([2, 3, 4])], lambda v: np.fft.fft2(v, s=[4, 2]), tol=TOL, s=[4, 2])
    f.model("fft.rfftn", [signal([4, 3], dtype="float32")], lambda v: np.fft.rfftn(v, s=[2, 4], axes=[0, 1]), tol=TOL, s=[2, 4], axes=[0, 1])
    f.model("fft.irfft2", [signal([4, 3])], lambda v: np.fft.irfft2(v, s=[4, 5]), tol=TOL, s=[4, 5])
    f.model("fft.fftn", [signal([3, 4])], lambda v: np.fft.fftn(v, norm="ortho"), tol=TOL, norm="ortho")


def helpers(f):
    for n in (1, 4, 5, 8):
        f.wheel("fft.fftfreq", n=n, tol={"ulp": 2})
        f.wheel("fft.rfftfreq", n=n, d=0.5, tol={"ulp": 2})
    for axes in (None, 0, [0, 1]):
        f.wheel("fft.fftshift", sample("int32", [3, 4], "transposed"), axes=axes)
        f.wheel("fft.ifftshift", sample("int32", [3, 4]), axes=axes)


def frames(x, n_fft, hop, window, center, mode, norm, onesided):
    if center:
        pad = [(0, 0)] * (x.ndim - 1) + [(n_fft // 2, n_fft // 2)]
        x = np.pad(x, pad, mode={"reflect": "reflect", "constant": "constant", "edge": "edge"}[mode])
    lo = (n_fft - len(window)) // 2
    window = np.pad(window, (lo, n_fft - len(window) - lo))
    cut = np.stack([x[..., i:i + n_fft] * window for i in range(0, x.shape[-1] - n_fft + 1, hop)], -2)
    spectrum = np.fft.rfft(cut, norm=norm) if onesided else np.fft.fft(cut, norm=norm)
    return np.swapaxes(spectrum, -1, -2)


def stft(f):
    x = signal([20], dtype="float32")
    w = arr("float32", np.hanning(9)[:8])

    def case(x, window=None, n_fft=8, hop=None, center=True, pad_mode="reflect", norm="backward", onesided=None, win_length=None):
        real = x.dtype != "complex64"
        side = real if onesided is None else onesided
        win = np.ones(win_length or n_fft) if window is None else window.wide
        attrs = {"n_fft": n_fft, "center": center, "pad_mode": pad_mode, "norm": norm}
        attrs |= {k: v for k, v in (("hop_length", hop), ("win_length", win_length), ("onesided", onesided)) if v is not None}
        f.model("fft.stft", [x, window], lambda v, _: frames(v, n_fft, hop or n_fft // 4, win, center, pad_mode, norm, side), tol=TOL, **attrs)

    case(x)
    case(x, w)
    case(x, w, hop=4)
    case(x, w, center=False)
    case(x, w, pad_mode="constant", hop=3)
    case(x, w, pad_mode="edge", hop=3)
    case(x, w, onesided=False, hop=4)
    case(x, w, norm="ortho", hop=4)
    case(x, win_length=4, hop=2)
    case(signal([2, 16], dtype="float32"), w, hop=4)
    case(signal([16]), w, hop=4)
    y = arr("complex64", frames(x.wide, 8, 4, w.wide, True, "reflect", "backward", True))
    f.model("fft.istft", [y, w], lambda *_: x.wide, tol=TOL, hop_length=4, length=20)
    z = arr("complex64", frames(x.wide, 8, 2, np.ones(8), True, "reflect", "backward", True))
    f.wheel("fft.istft", z, None, tol={"rtol": 1e-5, "atol": 1e-5}, hop_length=2)
    f.wheel("fft.istft", y, w, tol={"rtol": 1e-5, "atol": 1e-5}, hop_length=4)
    f.wheel("fft.istft", y, w, tol={"rtol": 1e-5, "atol": 1e-5}, hop_length=4, length=30)


def errors(f):
    x = signal([4])
    f.error("Axis", "fft.fft", x, axis=1)
    f.error("Value", "fft.fft", x, n=0)
    f.error("Value", "fft.fft", x, n=-1)
    f.error("Value", "fft.fft", x, norm="none")
    f.error("Axis", "fft.fftn", signal([2, 3]), axes=[0, 2])
    f.error("Value", "fft.fft2", signal([2, 3]), s=[2], axes=[0, 1])
    f.error("Shape", "fft.fft", arr("complex64", 1j), wheel=False)
