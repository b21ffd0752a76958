"""Writes data/*.json: what MLX gives for layers, activations, losses and initialisers, and its public names.

Run with MLX installed: python generate.py. A case is named by the Python expression that makes the layer, so that the
Rust side, which lists the same expressions, can be read beside it.
"""

import inspect
import json
import pathlib
import re

import mlx.core as mx
import mlx.nn as nn
import mlx.nn.layers.distributed as distributed
import mlx.optimizers as optim
import mlx.utils as utils
import numpy as np
from mlx.utils import tree_flatten

HERE = pathlib.Path(__file__).parent / "data"
SEED = 7


def pack(a):
    a = mx.array(a)
    dtype = str(a.dtype).split(".")[-1]
    data = np.array(a).flatten()
    # The shortest decimal that reads back as the same float32.
    data = [float(str(v)) for v in data] if data.dtype == np.float32 else data.tolist()
    return {"shape": list(a.shape), "dtype": dtype, "data": data}


def wave(*shape, start=0.0, step=0.37):
    """Numbers between -2 and 2 without a pattern a layer could miss."""
    n = 1
    for d in shape:
        n *= d
    return (2 * mx.sin(start + step * mx.arange(n) * (1 + 0.01 * mx.arange(n)))).reshape(shape)


def flat(module):
    return {k: pack(v) for k, v in tree_flatten(module.parameters())}


def layer(expression, *inputs, train=True, call=None, prepare=None, name=None):
    mx.random.seed(SEED)
    module = eval("nn." + expression)
    params = flat(module)
    # MLX prints the address of a function there.
    text = re.sub("nonlinearity=<.*?>, ", "", str(module))
    if prepare:
        prepare(module)
    module.train(train)
    out = (call or (lambda m, *x: m(*x)))(module, *inputs)
    outs = [pack(o) for o in (out if isinstance(out, tuple) else (out,))]
    case = {"name": name or expression, "train": train, "repr": text, "params": params}
    case |= {"inputs": [pack(x) for x in inputs], "outputs": outs}
    after = flat(module)
    grads = gradients(expression, inputs, train, call) if case["outputs"] else {}
    changed = {k: v for k, v in after.items() if v != params.get(k)}
    return case | {"after": changed, "grads": grads}


def counted(a):
    """Weights that are the same in every language."""
    return ((mx.arange(a.size) * 37 % 11 - 5) / 5).reshape(a.shape)


def gradients(expression, inputs, train, call):
    """Of a weighted sum of the outputs: for each parameter and floating input, the weighted sum of its gradient."""
    mx.random.seed(SEED)
    module = eval("nn." + expression)
    module.train(train)
    real = [i for i, x in enumerate(inputs) if x.dtype == mx.float32]

    def loss(params, arrays):
        module.update(params)
        x = list(inputs)
        for i, a in zip(real, arrays):
            x[i] = a
        out = (call or (lambda m, *x: m(*x)))(module, *x)
        return sum((o * counted(o)).sum() for o in (out if isinstance(out, tuple) else (out,)))

    try:
        params, arrays = mx.grad(loss, argnums=(0, 1))(module.trainable_parameters(), [inputs[i] for i in real])
    except ValueError as error:
        print("no gradients:", expression, error)
        return {}
    found = {k: (g * counted(g)).sum().item() for k, g in tree_flatten(params)}
    return found | {f"input {i}": (g * counted(g)).sum().item() for i, g in zip(real, arrays)}


def layers():
    x = wave(2, 3)
    seq = wave(2, 5, 3)
    img = wave(2, 5, 4, 4)
    vol = wave(1, 3, 4, 3, 2)
    line = wave(2, 9, 4)
    square = wave(2, 6, 6, 4)
    yield layer("Linear(3, 4)", x)
    yield layer("Linear(3, 4, bias=False)", seq)
    yield layer("Bilinear(3, 2, 4)", x, wave(2, 2, start=1))
    yield layer("Identity()", x)
    yield layer("Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))", x)
    yield layer("Embedding(5, 3)", mx.array([[0, 4], [2, 2]]))
    yield layer("Embedding(5, 3)", x, call=lambda m, x: m.as_linear(x), name="Embedding(5, 3).as_linear")
    yield layer("Conv1d(4, 6, 3)", line)
    yield layer("Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, bias=False)", line)
    yield layer("Conv2d(4, 6, 3)", img)
    yield layer("Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2)", img)
    yield layer("Conv3d(2, 3, 2, padding=1)", vol)
    yield layer("ConvTranspose1d(4, 3, 3, stride=2, padding=1, output_padding=1)", line)
    yield layer("ConvTranspose2d(4, 3, (2, 3), stride=(2, 1))", img)
    yield layer("ConvTranspose3d(2, 2, 2, bias=False)", vol)
    yield layer("LayerNorm(3)", seq)
    yield layer("LayerNorm(3, eps=1e-3, bias=False)", seq)
    yield layer("LayerNorm(3, affine=False)", seq)
    yield layer("RMSNorm(3)", seq)
    yield layer("InstanceNorm(4)", img)
    yield layer("InstanceNorm(4, affine=True)", line)
    yield layer("GroupNorm(2, 4)", img)
    yield layer("GroupNorm(2, 4, affine=False, pytorch_compatible=True)", img)
    yield layer("BatchNorm(4)", img)
    yield layer("BatchNorm(4)", line, train=False, name="BatchNorm(4) eval")
    yield layer("BatchNorm(4, momentum=0.3, affine=False)", line)
    yield layer("BatchNorm(4, track_running_stats=False)", line, train=False)
    yield layer("Dropout(0.4)", line)
    yield layer("Dropout(0.4)", line, train=False, name="Dropout(0.4) eval")
    yield layer("Dropout2d(0.4)", img)
    yield layer("Dropout3d(0.4)", vol)
    for kind in ("MaxPool", "AvgPool"):
        yield layer(f"{kind}1d(3, 2, 1)", line)
        yield layer(f"{kind}2d(2)", square)
        yield layer(f"{kind}2d((3, 2), (2, 1), (1, 0))", square)
        yield layer(f"{kind}3d(2, 1)", vol)
    yield layer("Upsample(2)", img)
    yield layer("Upsample((1.5, 0.7))", img)
    yield layer("Upsample(1.6, mode='linear')", img)
    yield layer("Upsample((2, 1.5), mode='linear', align_corners=True)", img)
    yield layer("Upsample(0.6, mode='linear', antialias=True)", square)
    yield layer("Upsample((2, 1.5), mode='cubic')", img)
    yield layer("Upsample(2.5, mode='cubic', align_corners=True)", line)
    yield layer("Upsample(0.6, mode='cubic', antialias=True)", square)
    yield layer("RNN(3, 4)", seq)
    yield layer("RNN(3, 4, bias=False)", seq, wave(2, 4), name="RNN(3, 4, bias=False) from")
    yield layer("GRU(3, 4)", seq)
    yield layer("GRU(3, 4, bias=False)", seq, wave(2, 4), name="GRU(3, 4, bias=False) from")
    yield layer("GRU(3, 4)", seq, wave(2, 4), name="GRU(3, 4) from")
    yield layer("LSTM(3, 4)", seq)
    yield layer("LSTM(3, 4, bias=False)", seq, wave(2, 4), wave(2, 4, start=2), name="LSTM(3, 4, bias=False) from")
    q, k, v = wave(2, 3, 8), wave(2, 5, 6, start=1), wave(2, 5, 4, start=2)
    yield layer("MultiHeadAttention(8, 2)", q, q, q)
    yield layer(
        "MultiHeadAttention(8, 2, key_input_dims=6, value_input_dims=4, value_dims=6, value_output_dims=3, bias=True)",
        q, k, v,
    )
    mask = nn.MultiHeadAttention.create_additive_causal_mask(3)
    yield layer("MultiHeadAttention(8, 2)", q, q, q, mask, name="MultiHeadAttention(8, 2) masked")
    yield layer("TransformerEncoder(2, 8, 2, mlp_dims=6)", q, mask)
    yield layer("TransformerEncoder(1, 8, 2, dropout=0.2, activation=nn.gelu, norm_first=False)", q, mask)
    memory = wave(2, 5, 8, start=1)
    yield layer(
        "TransformerDecoder(1, 8, 2)", q, memory, mask, call=lambda m, q, memory, mask: m(q, memory, mask, None)
    )
    yield layer(
        "Transformer(8, 2, 1, 1, mlp_dims=6, norm_first=False, checkpoint=True)",
        memory, q, mask, call=lambda m, s, t, mask: m(s, t, None, mask, None),
    )
    heads = wave(1, 2, 3, 8)
    yield layer("RoPE(8)", heads)
    yield layer("RoPE(4, traditional=True, base=100, scale=0.5)", heads, call=lambda m, x: m(x, offset=3))
    yield layer("SinusoidalPositionalEncoding(6)", mx.arange(4).astype(mx.float32))
    yield layer("SinusoidalPositionalEncoding(6, 0.01, 2, scale=1, cos_first=True, full_turns=True)", mx.arange(4).astype(mx.float32))
    yield layer("ALiBi()", wave(2, 4, 3, 5))
    yield layer("ALiBi()", wave(1, 6, 2, 5), wave(2, 5), call=lambda m, x, mask: m(x, 3, mask), name="ALiBi() offset")
    wide = wave(2, 64)
    yield layer("QuantizedLinear(64, 8)", wide)
    yield layer("QuantizedLinear(64, 8, bias=False, bits=4, mode='mxfp4')", wide)
    yield layer("QuantizedEmbedding(4, 64, group_size=32, bits=8)", mx.array([[3, 0]]))
    yield layer("QuantizedEmbedding(4, 64)", wide, call=lambda m, x: m.as_linear(x), name="QuantizedEmbedding(4, 64).as_linear")
    # MLX has no qqmm on CPUs: only what the layer holds.
    yield layer("QQLinear(64, 8)", wide, train=False, call=lambda m, x: ())
    yield layer("AllToShardedLinear(3, 4)", x)
    yield layer("ShardedToAllLinear(3, 4)", x)
    yield layer("QuantizedAllToShardedLinear(64, 8)", wide)
    yield layer("QuantizedShardedToAllLinear(64, 8, bias=False)", wide)
    yield layer("PReLU(3, 0.1)", x)
    yield layer("GELU('tanh')", x)


def functions():
    x = mx.array([[-8, -3.5, -1, -0.5, -0.1, 0], [0.1, 0.5, 1, 2, 3.5, 8.0]])
    calls = (
        "sigmoid(x) relu(x) relu2(x) relu6(x) leaky_relu(x) leaky_relu(x,0.2) elu(x) elu(x,0.5) celu(x) celu(x,2.0) selu(x) "
        "silu(x) mish(x) softplus(x) softsign(x) softshrink(x) softshrink(x,1.0) hard_shrink(x) hard_shrink(x,1.0) "
        "hardswish(x) hard_tanh(x) hard_tanh(x,-2,3) tanh(x) step(x) step(x,0.5) log_sigmoid(x) softmax(x) softmax(x,0) "
        "softmin(x) log_softmax(x) log_softmax(x,0) glu(x) glu(x,0) gelu(x) gelu_approx(x) gelu_fast_approx(x)"
    ).split(" ")
    for call in calls:
        yield {"name": call, "inputs": [pack(x)], "outputs": [pack(eval("nn." + call))]}


def losses():
    logits, other, third = wave(3, 4), wave(3, 4, start=1), wave(3, 4, start=2)
    classes = mx.array([1, 0, 3])
    columns = mx.array([2, 0, 1, 1])
    probs = mx.softmax(other, axis=-1)
    bits = (other > 0).astype(mx.float32)
    signs = mx.where(other > 0, 1.0, -1.0)
    weights, all_weights = mx.array([0.5, 2.0, 1.0]), mx.abs(third)
    unit = mx.sigmoid(logits)
    certain = mx.array([0.0, 1.0, 0.5])
    logp, logq = nn.log_softmax(logits), nn.log_softmax(other)
    rows = [
        ("cross_entropy(a, b)", logits, classes),
        ("cross_entropy(a, b) probabilities", logits, probs),
        ("cross_entropy(a, b, axis=0)", logits, columns),
        ("cross_entropy(a, b, weights=c)", logits, classes, weights),
        ("cross_entropy(a, b, label_smoothing=0.1)", logits, classes),
        ("cross_entropy(a, b, weights=c, label_smoothing=0.3) probabilities", logits, probs, weights),
        ("binary_cross_entropy(a, b)", logits, bits),
        ("binary_cross_entropy(a, b, weights=c)", logits, bits, all_weights),
        ("binary_cross_entropy(a, b, with_logits=False)", unit, bits),
        ("binary_cross_entropy(a, b, with_logits=False) certain", certain, mx.array([1.0, 0.0, 1.0])),
        ("l1_loss(a, b)", logits, other),
        ("mse_loss(a, b)", logits, other),
        ("nll_loss(a, b)", logp, classes),
        ("nll_loss(a, b, axis=0)", logp, columns),
        ("gaussian_nll_loss(a, b, c)", logits, other, mx.abs(third)),
        ("gaussian_nll_loss(a, b, c, full=True, eps=0.5)", logits, other, mx.abs(third)),
        ("kl_div_loss(a, b)", logp, logq),
        ("kl_div_loss(a, b, axis=0)", logp, logq),
        ("smooth_l1_loss(a, b)", logits, other),
        ("smooth_l1_loss(a, b, beta=0.5)", logits, other),
        ("triplet_loss(a, b, c)", logits, other, third),
        ("triplet_loss(a, b, c, axis=0, p=3, margin=0.5)", logits, other, third),
        ("hinge_loss(a, b)", logits, signs),
        ("huber_loss(a, b)", logits, other),
        ("huber_loss(a, b, delta=0.5)", logits, other),
        ("log_cosh_loss(a, b)", logits, other),
        ("cosine_similarity_loss(a, b)", logits, other),
        ("cosine_similarity_loss(a, b, axis=0)", logits, other),
        ("margin_ranking_loss(a, b, c)", logits, other, signs),
        ("margin_ranking_loss(a, b, c, margin=0.4)", logits, other, signs),
    ]
    for name, a, b, *rest in rows:
        c = rest[0] if rest else None
        call = name.split(")")[0]
        names = {"nn": nn, "a": a, "b": b, "c": c}
        default = eval(f"nn.losses.{call})", names)
        outs = [pack(eval(f"nn.losses.{call}, reduction='{r}')", names)) for r in ("none", "mean", "sum")]
        case = {"name": name, "inputs": [pack(i) for i in (a, b, *rest)], "outputs": outs, "default": pack(default)}
        yield case


def inits():
    rows = [
        ("constant(0.5)", (2, 3)),
        ("normal()", (2, 3)),
        ("normal(1.5, 0.25)", (5,)),
        ("uniform(-1, 3)", (2, 3)),
        ("identity()", (3, 3)),
        ("glorot_normal()", (4, 6)),
        ("glorot_uniform() gain=2", (4, 3, 6)),
        ("he_normal()", (4, 6)),
        ("he_uniform() fan_out gain=2", (4, 3, 6)),
        ("sparse(0.4)", (4, 6)),
        ("orthogonal(2.0)", (4, 6)),
        ("orthogonal()", (6, 3)),
    ]
    extra = {"glorot_uniform() gain=2": {"gain": 2.0}, "he_uniform() fan_out gain=2": {"mode": "fan_out", "gain": 2.0}}
    for name, shape in rows:
        mx.random.seed(SEED)
        f = eval("nn.init." + name.split(" gain")[0].split(" fan")[0])
        yield {"name": name, "shape": list(shape), "outputs": [pack(f(mx.zeros(shape), **extra.get(name, {})))]}


def names():
    """Every public class and function with its parameters as Python writes them, without annotations."""

    def parameters(f):
        found = []
        for p in inspect.signature(f).parameters.values():
            if p.name in ("self", "cls"):
                continue
            star = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
            default = p.default
            if callable(default):
                default = getattr(default, "__name__", "?")
                default = "floating" if default == "<lambda>" else default
            elif isinstance(default, str):
                default = f"'{default}'"
            found.append(star + p.name + ("" if p.default is p.empty else f"={default}"))
        return ", ".join(found)

    rows = {}
    modules = {"nn": nn, "nn.losses": nn.losses, "nn.init": nn.init, "nn.utils": nn.utils, "optimizers": optim,
               "nn.distributed": distributed, "utils": utils}
    for prefix, module in modules.items():
        for name in dir(module):
            thing = getattr(module, name)
            home = getattr(thing, "__module__", "") or ""
            if name.startswith("_") or inspect.ismodule(thing) or not home.startswith("mlx."):
                continue
            if prefix == "optimizers" and not home.startswith("mlx.optimizers"):
                continue
            if prefix not in ("nn", "optimizers") and home != module.__name__:
                continue
            if prefix == "nn.distributed" and hasattr(nn, name):
                continue
            full = name if prefix == "nn" else f"{prefix}.{name}"
            if inspect.isclass(thing):
                rows[full] = parameters(thing.__init__)
            elif inspect.isfunction(thing) or type(thing).__name__ in ("gc_func", "nb_func", "compiled"):
                rows[full] = parameters(thing)
    for name, thing in vars(nn.Module).items():
        if not name.startswith("_") and not name.endswith("_filter"):
            rows[f"Module.{name}"] = "" if isinstance(thing, property) else parameters(getattr(nn.Module, name))
    for name, thing in vars(optim.Optimizer).items():
        if not name.startswith("_"):
            rows[f"Optimizer.{name}"] = "" if isinstance(thing, property) else parameters(getattr(optim.Optimizer, name))
    return rows


def write(name, cases):
    cases = list(cases)
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    head = json.dumps({"mlx": mx.__version__, "seed": SEED})[1:-1]
    (HERE / f"{name}.json").write_text("{" + head + ',"cases":[\n' + lines + "\n]}\n")
    print(name, len(cases))


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    write("layers", layers())
    write("activations", functions())
    write("losses", losses())
    write("initialisers", inits())
    lines = ",\n".join(f"{json.dumps(k)}:{json.dumps(v)}" for k, v in names().items())
    (HERE / "names.json").write_text("{\n" + lines + "\n}\n")
