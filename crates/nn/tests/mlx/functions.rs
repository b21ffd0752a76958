//! Activations, losses and initialisers.

use crate::case::{arrays, cases, expect_like, shape, text};
use lapis::shape::show;
use lapis::{Array, Dtype, Result, ops, random};
use lapis_nn::Layer;
use lapis_nn::activations::*;
use lapis_nn::init::{self, Fan};
use lapis_nn::losses::*;

fn activation(name: &str, x: &Array) -> Result<Array> {
    match name {
        "sigmoid(x)" => sigmoid(x),
        "relu(x)" => relu(x),
        "relu2(x)" => relu2(x),
        "relu6(x)" => relu6(x),
        "leaky_relu(x)" => leaky_relu(x, 0.01),
        "leaky_relu(x,0.2)" => leaky_relu(x, 0.2),
        "elu(x)" => elu(x, 1.0),
        "elu(x,0.5)" => elu(x, 0.5),
        "celu(x)" => celu(x, 1.0),
        "celu(x,2.0)" => celu(x, 2.0),
        "selu(x)" => selu(x),
        "silu(x)" => silu(x),
        "mish(x)" => mish(x),
        "softplus(x)" => softplus(x),
        "softsign(x)" => softsign(x),
        "softshrink(x)" => softshrink(x, 0.5),
        "softshrink(x,1.0)" => softshrink(x, 1.0),
        "hard_shrink(x)" => hard_shrink(x, 0.5),
        "hard_shrink(x,1.0)" => hard_shrink(x, 1.0),
        "hardswish(x)" => hardswish(x),
        "hard_tanh(x)" => hard_tanh(x, -1.0, 1.0),
        "hard_tanh(x,-2,3)" => hard_tanh(x, -2.0, 3.0),
        "tanh(x)" => tanh(x),
        "step(x)" => step(x, 0.0),
        "step(x,0.5)" => step(x, 0.5),
        "log_sigmoid(x)" => log_sigmoid(x),
        "softmax(x)" => softmax(x, -1),
        "softmax(x,0)" => softmax(x, 0),
        "softmin(x)" => softmin(x, -1),
        "log_softmax(x)" => log_softmax(x, -1),
        "log_softmax(x,0)" => log_softmax(x, 0),
        "glu(x)" => glu(x, -1),
        "glu(x,0)" => glu(x, 0),
        "gelu(x)" => gelu(x),
        "gelu_approx(x)" => gelu_approx(x),
        "gelu_fast_approx(x)" => gelu_fast_approx(x),
        other => panic!("an activation that the test does not know: {other}"),
    }
}

#[test]
fn activations_are_mlxs() {
    for case in cases(include_str!("../data/activations.json")).1 {
        let name = text(&case, "name");
        let got = activation(name, &arrays(&case["inputs"])[0]).unwrap();
        expect_like(name, &got, &arrays(&case["outputs"])[0], false);
    }
}

/// The layer of a function, with its defaults.
fn activation_layer(name: &str) -> Option<Box<dyn Layer>> {
    Some(match name {
        "sigmoid(x)" => Box::new(Sigmoid),
        "relu(x)" => Box::new(ReLU),
        "relu2(x)" => Box::new(ReLU2),
        "relu6(x)" => Box::new(ReLU6),
        "leaky_relu(x)" => Box::new(LeakyReLU::default()),
        "elu(x)" => Box::new(ELU::default()),
        "celu(x)" => Box::new(CELU::default()),
        "selu(x)" => Box::new(SELU),
        "silu(x)" => Box::new(SiLU),
        "mish(x)" => Box::new(Mish),
        "softplus(x)" => Box::new(Softplus),
        "softsign(x)" => Box::new(Softsign),
        "softshrink(x)" => Box::new(Softshrink::default()),
        "hard_shrink(x)" => Box::new(HardShrink::default()),
        "hardswish(x)" => Box::new(Hardswish),
        "hard_tanh(x)" => Box::new(HardTanh),
        "tanh(x)" => Box::new(Tanh),
        "step(x)" => Box::new(Step::default()),
        "log_sigmoid(x)" => Box::new(LogSigmoid),
        "softmax(x)" => Box::new(Softmax),
        "softmin(x)" => Box::new(Softmin),
        "log_softmax(x)" => Box::new(LogSoftmax),
        "glu(x)" => Box::new(GLU::default()),
        "gelu(x)" => Box::new(GELU::default()),
        "gelu_approx(x)" => Box::new(GELU { approx: GeluApprox::from_name("tanh").unwrap() }),
        "gelu_fast_approx(x)" => Box::new(GELU { approx: GeluApprox::from_name("fast").unwrap() }),
        _ => return None,
    })
}

#[test]
fn layers_of_activations_have_mlxs_defaults() {
    let mut count = 0;
    for case in cases(include_str!("../data/activations.json")).1 {
        let name = text(&case, "name");
        if let Some(layer) = activation_layer(name) {
            let got = layer.forward(&arrays(&case["inputs"])[0]).unwrap();
            expect_like(name, &got, &arrays(&case["outputs"])[0], false);
            count += 1;
        }
    }
    assert_eq!(count, 26);
}

/// The loss of a case, and MLX's default reduction.
fn loss(name: &str, x: &[Array], r: Reduction) -> Result<(Array, Reduction)> {
    use Reduction::{Mean, None as Whole};
    let entropy = |weights, axis, label_smoothing| {
        cross_entropy(&x[0], &x[1], CrossEntropy { weights, axis, label_smoothing, reduction: r })
    };
    let c = x.get(2);
    let (a, b) = (&x[0], &x[1]);
    Ok(match name {
        "cross_entropy(a, b)" | "cross_entropy(a, b) probabilities" => (entropy(None, -1, 0.0)?, Whole),
        "cross_entropy(a, b, axis=0)" => (entropy(None, 0, 0.0)?, Whole),
        "cross_entropy(a, b, weights=c)" => (entropy(c, -1, 0.0)?, Whole),
        "cross_entropy(a, b, label_smoothing=0.1)" => (entropy(None, -1, 0.1)?, Whole),
        "cross_entropy(a, b, weights=c, label_smoothing=0.3) probabilities" => (entropy(c, -1, 0.3)?, Whole),
        "binary_cross_entropy(a, b)" => (binary_cross_entropy(a, b, None, true, r)?, Mean),
        "binary_cross_entropy(a, b, weights=c)" => (binary_cross_entropy(a, b, c, true, r)?, Mean),
        "binary_cross_entropy(a, b, with_logits=False)" | "binary_cross_entropy(a, b, with_logits=False) certain" => {
            (binary_cross_entropy(a, b, None, false, r)?, Mean)
        }
        "l1_loss(a, b)" => (l1_loss(a, b, r)?, Mean),
        "mse_loss(a, b)" => (mse_loss(a, b, r)?, Mean),
        "nll_loss(a, b)" => (nll_loss(a, b, -1, r)?, Whole),
        "nll_loss(a, b, axis=0)" => (nll_loss(a, b, 0, r)?, Whole),
        "gaussian_nll_loss(a, b, c)" => (gaussian_nll_loss(a, b, &x[2], false, 1e-6, r)?, Mean),
        "gaussian_nll_loss(a, b, c, full=True, eps=0.5)" => (gaussian_nll_loss(a, b, &x[2], true, 0.5, r)?, Mean),
        "kl_div_loss(a, b)" => (kl_div_loss(a, b, -1, r)?, Whole),
        "kl_div_loss(a, b, axis=0)" => (kl_div_loss(a, b, 0, r)?, Whole),
        "smooth_l1_loss(a, b)" => (smooth_l1_loss(a, b, 1.0, r)?, Mean),
        "smooth_l1_loss(a, b, beta=0.5)" => (smooth_l1_loss(a, b, 0.5, r)?, Mean),
        "triplet_loss(a, b, c)" => (triplet_loss(a, b, &x[2], Triplet { reduction: r, ..Triplet::default() })?, Whole),
        "triplet_loss(a, b, c, axis=0, p=3, margin=0.5)" => {
            let options = Triplet { axis: 0, p: 3, margin: 0.5, reduction: r, ..Triplet::default() };
            (triplet_loss(a, b, &x[2], options)?, Whole)
        }
        "hinge_loss(a, b)" => (hinge_loss(a, b, r)?, Whole),
        "huber_loss(a, b)" => (huber_loss(a, b, 1.0, r)?, Whole),
        "huber_loss(a, b, delta=0.5)" => (huber_loss(a, b, 0.5, r)?, Whole),
        "log_cosh_loss(a, b)" => (log_cosh_loss(a, b, r)?, Whole),
        "cosine_similarity_loss(a, b)" => (cosine_similarity_loss(a, b, 1, 1e-8, r)?, Whole),
        "cosine_similarity_loss(a, b, axis=0)" => (cosine_similarity_loss(a, b, 0, 1e-8, r)?, Whole),
        "margin_ranking_loss(a, b, c)" => (margin_ranking_loss(a, b, &x[2], 0.0, r)?, Whole),
        "margin_ranking_loss(a, b, c, margin=0.4)" => (margin_ranking_loss(a, b, &x[2], 0.4, r)?, Whole),
        other => panic!("a loss that the test does not know: {other}"),
    })
}

#[test]
fn losses_are_mlxs_under_every_reduction() {
    for case in cases(include_str!("../data/losses.json")).1 {
        let name = text(&case, "name");
        let (inputs, outputs) = (arrays(&case["inputs"]), arrays(&case["outputs"]));
        for (reduction, want) in ["none", "mean", "sum"].into_iter().zip(&outputs) {
            let (got, default) = loss(name, &inputs, Reduction::from_name(reduction).unwrap()).unwrap();
            expect_like(&format!("{name} {reduction}"), &got, want, false);
            // The default that the docs name is MLX's.
            let by_default = loss(name, &inputs, default).unwrap().0;
            expect_like(&format!("{name} default"), &by_default, &crate::case::array(&case["default"]), false);
        }
    }
}

#[test]
fn losses_of_arrays_that_do_not_fit_are_errors() {
    let (a, b) = (ops::ones::<f32>(&[2, 3]).unwrap(), ops::ones::<f32>(&[3]).unwrap());
    let r = Reduction::Mean;
    let says = |e: Result<Array>| assert!(e.unwrap_err().message().contains(&show(&[2, 3])));
    says(mse_loss(&a, &b, r));
    says(l1_loss(&a, &b, r));
    says(hinge_loss(&a, &b, r));
    says(kl_div_loss(&a, &b, -1, r));
    says(cosine_similarity_loss(&a, &b, 1, 1e-8, r));
    says(binary_cross_entropy(&a, &b, None, true, r));
    let e = cross_entropy(&a, &b, CrossEntropy::default()).unwrap_err();
    assert!(e.message().contains(&show(&[3])) && e.message().contains(&show(&[2])), "{e}");
    let smoothing = CrossEntropy { label_smoothing: 1.0, ..CrossEntropy::default() };
    assert!(cross_entropy(&a, &a, smoothing).is_err());
}

#[test]
fn initialisers_draw_mlxs_values() {
    let (seed, all) = cases(include_str!("../data/initialisers.json"));
    let f = Dtype::Float32;
    for case in all {
        let name = text(&case, "name");
        let a = ops::zeros::<f32>(&shape(&case["shape"])).unwrap();
        random::seed(seed);
        let (got, exact) = match name {
            "constant(0.5)" => (init::constant(0.5, f)(&a), true),
            "normal()" => (init::normal(0.0, 1.0, f)(&a), true),
            "normal(1.5, 0.25)" => (init::normal(1.5, 0.25, f)(&a), true),
            "uniform(-1, 3)" => (init::uniform(-1.0, 3.0, f)(&a), true),
            "identity()" => (init::identity(f)(&a), true),
            "glorot_normal()" => (init::glorot_normal(f)(&a, 1.0), true),
            "glorot_uniform() gain=2" => (init::glorot_uniform(f)(&a, 2.0), true),
            "he_normal()" => (init::he_normal(f)(&a, Fan::In, 1.0), true),
            "he_uniform() fan_out gain=2" => (init::he_uniform(f)(&a, Fan::Out, 2.0), true),
            "sparse(0.4)" => (init::sparse(0.4, 0.0, 1.0, f)(&a), true),
            "orthogonal(2.0)" => (init::orthogonal(2.0, f)(&a), false),
            "orthogonal()" => (init::orthogonal(1.0, f)(&a), false),
            other => panic!("an initialiser that the test does not know: {other}"),
        };
        expect_like(name, &got.unwrap(), &arrays(&case["outputs"])[0], exact);
    }
}

#[test]
fn initialisers_refuse_shapes_without_a_meaning() {
    let vector = ops::zeros::<f32>(&[3]).unwrap();
    let f = Dtype::Float32;
    assert!(init::identity(f)(&vector).is_err());
    assert!(init::glorot_normal(f)(&vector, 1.0).is_err());
    assert!(init::orthogonal(1.0, f)(&vector).is_err());
    assert!(init::sparse(0.5, 0.0, 1.0, f)(&vector).is_err());
}
