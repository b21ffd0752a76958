//! What `#[derive(Module)]` makes of structs and enums, as a user would write them.

use lapis::{array, ops};
use lapis_nn::{Buffer, Leaf, Mode, Module, Param};

#[derive(Module, Clone)]
#[module(repr)]
struct Dense {
    weight: Param,
    bias: Option<Param>,
    mode: Mode,
    scale: f32,
}

impl Dense {
    fn new(bias: bool) -> Dense {
        let weight = Param::new(ops::ones::<f32>(&[2, 3]).unwrap());
        let bias = bias.then(|| Param::new(array([0.0f32, 0.0])));
        Dense { weight, bias, mode: Mode::Train, scale: 1.0 }
    }
    fn repr(&self) -> String {
        format!("scale={}", self.scale)
    }
}

#[derive(Module, Clone)]
enum Either {
    Dense(Dense),
    Parts { weight: Param, scales: Param },
    Nothing,
}

struct NotAModule;

#[derive(Module)]
struct Model<T: Module, const N: usize>
where
    T: Clone,
{
    layers: Vec<T>,
    boxed: Box<dyn Module>,
    pair: [Dense; N],
    #[flatten]
    inside: Either,
    r#type: Either,
    #[name = "Wx"]
    wx: Param,
    running: Buffer,
    activation: fn(&lapis::Array) -> lapis::Result<lapis::Array>,
    #[plain]
    _secret: NotAModule,
}

fn model() -> Model<Dense, 1> {
    let number = |n: f32| Param::new(array([n]));
    Model {
        layers: vec![Dense::new(true), Dense::new(false)],
        boxed: Box::new(Dense::new(false)),
        pair: [Dense::new(false)],
        inside: Either::Parts { weight: number(1.0), scales: number(2.0) },
        r#type: Either::Dense(Dense::new(false)),
        wx: number(3.0),
        running: Buffer::new(array([4.0f32])),
        activation: ops::exp,
        _secret: NotAModule,
    }
}

#[test]
fn names_are_the_paths_of_fields() {
    let model = model();
    let names: Vec<String> = model.parameters().into_keys().collect();
    let expected = [
        "Wx",
        "boxed.weight",
        "layers.0.bias",
        "layers.0.weight",
        "layers.1.weight",
        "pair.0.weight",
        "running",
        "scales",
        "type.weight",
        "weight",
    ];
    assert_eq!(names, expected);
    assert!(!model.trainable_parameters().contains_key("running"));
    assert_eq!(model.num_parameters(), 6 * 5 + 2 + 4);
    assert_eq!(Either::Nothing.parameters().len(), 0);
    assert_eq!((model.activation)(&array([0.0f32])).unwrap().item::<f32>().unwrap(), 1.0);
}

#[test]
fn printed_as_mlx_prints() {
    let lines = [
        "Model(",
        "  (layers.0): Dense(scale=1)",
        "  (layers.1): Dense(scale=1)",
        "  (boxed): Dense(scale=1)",
        "  (pair.0): Dense(scale=1)",
        "  (type): Dense(scale=1)",
        ")",
    ];
    assert_eq!(model().to_string(), lines.join("\n"));
    let model = model();
    let names: Vec<String> = model.named_modules().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["layers.0", "layers.1", "boxed", "pair.0", "type"]);
}

#[test]
fn modes_reach_every_module() {
    let mut model = model();
    let all = |model: &Model<Dense, 1>, mode: Mode| {
        let mut n = 0;
        model.visit(&mut |_, leaf| {
            if let Leaf::Mode(m) = leaf {
                assert_eq!(m, mode);
                n += 1;
            }
        });
        n
    };
    assert_eq!(all(&model, Mode::Train), 5);
    model.eval();
    assert_eq!(all(&model, Mode::Eval), 5);
    model.train(true);
    assert_eq!(all(&model, Mode::Train), 5);
}

#[test]
fn freezing_by_part_and_by_name() {
    let mut model = model();
    assert_eq!(model.trainable_parameters().len(), 9);
    model.layers[0].freeze();
    assert_eq!(model.trainable_parameters().len(), 7);
    assert_eq!(model.unfreeze_where(&mut |name| lapis_nn::key(name) == "bias"), 1);
    assert!(model.trainable_parameters().contains_key("layers.0.bias"));
    assert_eq!(model.freeze_where(&mut |name| !name.contains('.')), 3, "Wx, weight, scales");
    model.freeze();
    assert!(model.trainable_parameters().is_empty());
    model.unfreeze();
    assert_eq!(model.trainable_parameters().len(), 9);
    let mut fixed = Param::fixed(array([1.0f32]));
    fixed.unfreeze();
    assert!(fixed.is_frozen());
}
