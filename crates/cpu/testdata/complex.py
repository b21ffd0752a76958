#!/usr/bin/env python3
"""Writes complex.txt: values of complex functions with 40 digits (pip install mpmath)."""
from mpmath import *
import struct, random
mp.dps=40
random.seed(5)
def f32(x): return struct.unpack('f',struct.pack('f',x))[0]
fs={'Exp':exp,'Log':log,'Log2':lambda z:log(z)/log(2),'Log10':lambda z:log(z)/log(10),'Log1p':lambda z:log(1+z),'Sin':sin,'Cos':cos,'Tan':tan,'Asin':asin,'Acos':acos,'Atan':atan,
'Sinh':sinh,'Cosh':cosh,'Tanh':tanh,'Asinh':asinh,'Acosh':acosh,'Atanh':atanh,'Sqrt':sqrt,'Rsqrt':lambda z:1/sqrt(z),'Reciprocal':lambda z:1/z}
pts=[(1.5,0.5),(-1.5,0.5),(-1.5,-2.5),(0.3,-0.7),(1.0000001,1e-4),(0.9999,0.01414),(-0.6,0.8),(1e-10,1e-12),(-1e-3,2e-20),(3.0,-20.0),(25.0,1.0),(-30.0,3.0),(0.001,1.5707964),(1e-3,0.99999994),(-0.99999994,1e-3),(1e10,-1e12),(3e-20,-2e19)]
for _ in range(6): pts.append((random.uniform(-4,4),random.uniform(-4,4)))
print("# Written with mpmath, 40 digits: function, argument, result.")
big={'Exp','Sin','Cos','Tan','Sinh','Cosh','Tanh'}
for n,f in fs.items():
    for a,b in pts:
        if n in big and max(abs(a),abs(b))>80: continue
        a,b=f32(a),f32(b); w=f(mpc(a,b))
        print(n,repr(a),repr(b),nstr(w.real,20),nstr(w.imag,20))
for (a,b),(c,d) in [(((-2,0)),(2,0)),((0,1),(3,0)),((1.5,-.5),(0.5,2)),((-3,1e-3),(0.25,0)),((2,3),(-2,0)),((0.5,.25),(12.5,-3)),((1e-10,1e10),(1.5,0))]:
    a,b,c,d=map(f32,(a,b,c,d)); w=mpc(a,b)**mpc(c,d)
    print("Pow",repr(a),repr(b),repr(c),repr(d),nstr(w.real,20),nstr(w.imag,20))
