//! Optimizers and schedules by their names and arguments, as settings have them.

use crate::Settings;
use lapis::{Error, Result};
use lapis_nn::optim::{
    Adafactor, Adam, AdamW, Muon, Optimizer, Rate, Schedule, Sgd, cosine_decay, exponential_decay, join_schedules,
    linear_schedule, step_decay,
};
use serde_json::Value;

/// The learning rate of the settings.
fn rate(s: &Settings) -> Result<Rate> {
    let Some(schedule) = &s.lr_schedule else {
        if s.warmup == 0 {
            return Ok(s.learning_rate.into());
        }
        let rate = s.learning_rate;
        let rest = linear_schedule(rate, rate, 1)?;
        return Ok(warmed(0.0, rate, s.warmup, rest)?.into());
    };
    let name = schedule.name.as_str();
    let wrong = |needs: &str| {
        let n = schedule.arguments.len();
        Error::value(format!("[lora] lr_schedule.arguments: {name} takes {needs}; {n} were given"))
    };
    let count = |x: f64| {
        let whole = x >= 0.0 && x.fract() == 0.0;
        if whole {
            Ok(x as u64)
        } else {
            Err(Error::value(format!("[lora] lr_schedule.arguments: {x} is no number of steps")))
        }
    };
    let all = match (name, schedule.arguments.as_slice()) {
        ("cosine_decay", &[init, steps]) => cosine_decay(init, count(steps)?, 0.0)?,
        ("cosine_decay", &[init, steps, end]) => cosine_decay(init, count(steps)?, end)?,
        ("cosine_decay", _) => return Err(wrong("init, decay_steps and perhaps end")),
        ("linear_schedule", &[init, end, steps]) => linear_schedule(init, end, count(steps)?)?,
        ("linear_schedule", _) => return Err(wrong("init, end and steps")),
        ("exponential_decay", &[init, factor]) => exponential_decay(init, factor),
        ("exponential_decay", _) => return Err(wrong("init and decay_rate")),
        ("step_decay", &[init, factor, steps]) => step_decay(init, factor, count(steps)?)?,
        ("step_decay", _) => return Err(wrong("init, decay_rate and step_size")),
        _ => {
            return Err(Error::value(format!(
                "[lora] lr_schedule.name is {name:?}; known are cosine_decay, exponential_decay, linear_schedule, step_decay"
            )));
        }
    };
    Ok(match schedule.warmup {
        0 => all.into(),
        steps => warmed(schedule.warmup_init, schedule.arguments[0], steps, all)?.into(),
    })
}

/// From `from` to `to` in `steps` steps, then `rest`.
fn warmed(from: f64, to: f64, steps: u64, rest: Schedule) -> Result<Schedule> {
    join_schedules(vec![linear_schedule(from, to, steps)?, rest], &[steps + 1])
}

/// Arguments of an optimizer, which are taken out one by one.
struct Arguments<'a> {
    name: &'a str,
    given: Vec<(&'a String, &'a Value)>,
    known: Vec<&'static str>,
}

impl<'a> Arguments<'a> {
    fn take<T>(&mut self, key: &'static str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.known.push(key);
        let Some(at) = self.given.iter().position(|(k, _)| *k == key) else { return Ok(None) };
        let (_, value) = self.given.swap_remove(at);
        read(value).map(Some).ok_or_else(|| {
            Error::value(format!("[lora] optimizer_config.{}.{key} is {value}; {what} is needed", self.name))
        })
    }

    fn number(&mut self, key: &'static str) -> Result<Option<f64>> {
        self.take(key, "a number", Value::as_f64)
    }

    fn truth(&mut self, key: &'static str) -> Result<Option<bool>> {
        self.take(key, "true or false", Value::as_bool)
    }

    fn pair(&mut self, key: &'static str) -> Result<Option<[f64; 2]>> {
        self.take(key, "a list of two numbers", |v| match v.as_array()?.as_slice() {
            [a, b] => Some([a.as_f64()?, b.as_f64()?]),
            _ => None,
        })
    }

    fn done(self) -> Result<()> {
        match self.given.first() {
            None => Ok(()),
            Some((key, _)) => Err(Error::value(format!(
                "[lora] optimizer_config.{}: {key:?} is no argument of it; known are {}",
                self.name,
                self.known.join(", ")
            ))),
        }
    }
}

/// Builder calls for the arguments that are given.
macro_rules! with {
    ($optimizer:expr, $arguments:ident; $($key:ident: $kind:ident),* $(,)?) => {{
        let mut optimizer = $optimizer;
        $(if let Some(value) = $arguments.$kind(stringify!($key))? {
            optimizer = optimizer.$key(value);
        })*
        $arguments.done()?;
        Box::new(optimizer)
    }};
}

/// The optimizer of the settings.
///
/// # Errors
/// Names and arguments that there are not.
pub(crate) fn optimizer(s: &Settings) -> Result<Box<dyn Optimizer>> {
    let (name, rate) = (s.optimizer.as_str(), rate(s)?);
    let given = match s.optimizer_config.get(name) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(map)) => map.iter().collect(),
        Some(_) => return Err(Error::value(format!("[lora] optimizer_config.{name} is no mapping of arguments"))),
    };
    let mut all = Arguments { name, given, known: Vec::new() };
    Ok(match name {
        "adam" => with!(Adam::new(rate), all; betas: pair, eps: number, bias_correction: truth),
        "adamw" => {
            with!(AdamW::new(rate), all; betas: pair, eps: number, bias_correction: truth, weight_decay: number)
        }
        "sgd" => {
            with!(Sgd::new(rate), all; momentum: number, weight_decay: number, dampening: number, nesterov: truth)
        }
        "muon" => {
            let steps = all.take("ns_steps", "a whole number", Value::as_u64)?;
            let muon = Muon::new(rate).ns_steps(steps.unwrap_or(5) as usize);
            with!(muon, all; momentum: number, weight_decay: number, nesterov: truth)
        }
        "adafactor" => {
            let first = all.number("beta_1")?;
            let adafactor = Adafactor::with_learning_rate(rate).beta_1(first);
            with!(adafactor, all; eps: pair, clip_threshold: number, decay_rate: number, weight_decay: number,
                scale_parameter: truth, relative_step: truth, warmup_init: truth)
        }
        _ => {
            return Err(Error::value(format!(
                "[lora] optimizer is {name:?}; known are adam, adamw, muon, sgd, adafactor"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::optimizer;
    use crate::Settings;
    use lapis::{array, eval};
    use lapis_nn::Params;
    use serde_json::json;

    /// Rates of the first steps, as mlx's schedules give them.
    fn rates(s: &Settings, steps: usize) -> Vec<f32> {
        let mut o = optimizer(s).unwrap();
        let mut w = Params::from([("w".to_string(), array([1.0f32]))]);
        let mut all = Vec::new();
        for _ in 0..steps {
            let g = Params::from([("w".to_string(), array([1.0f32]))]);
            w = o.apply(&g, &w).unwrap();
            eval(w.values().chain(o.state().values())).unwrap();
            all.push(o.learning_rate().unwrap().item::<f32>().unwrap());
        }
        all
    }

    #[test]
    fn schedules_as_in_mlx_lm() {
        let mut s = Settings::default();
        s.set("lr_schedule", json!({"name": "cosine_decay", "arguments": [1e-2, 10], "warmup": 2})).unwrap();
        // join_schedules([linear_schedule(0, 1e-2, 2), cosine_decay(1e-2, 10)], [3])
        let want = [0.0, 0.005, 0.01, 0.01, 0.009_755_283];
        for (a, b) in rates(&s, 5).iter().zip(want) {
            assert!((a - b).abs() < 1e-8, "{a} {b}");
        }
        let mut s = Settings { learning_rate: 1e-3, warmup: 4, ..Settings::default() };
        assert_eq!(rates(&s, 6)[0], 0.0);
        assert_eq!(rates(&s, 6)[5], 1e-3);
        s.set("lr_schedule", json!({"name": "cosine", "arguments": [1e-2]})).unwrap();
        assert!(optimizer(&s).err().unwrap().message().contains("known are cosine_decay"));
    }

    #[test]
    fn arguments_are_checked() {
        let mut s = Settings::default();
        for name in ["adam", "adamw", "muon", "sgd", "adafactor"] {
            s.optimizer = name.into();
            s.set("optimizer_config", json!({name: {}})).unwrap();
            optimizer(&s).unwrap();
            s.set("optimizer_config", json!({name: {"weight_dekay": 0.1}})).unwrap();
            assert!(optimizer(&s).err().unwrap().message().contains("known are"));
        }
        s.optimizer = "adamw".into();
        s.set("optimizer_config", json!({"adamw": {"betas": [0.9, 0.95], "weight_decay": 0.1}})).unwrap();
        optimizer(&s).unwrap();
        s.set("optimizer_config", json!({"adamw": {"betas": 3}})).unwrap();
        assert!(optimizer(&s).err().unwrap().message().contains("two numbers"));
    }
}
