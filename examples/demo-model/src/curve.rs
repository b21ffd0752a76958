//! The loss over the steps as an SVG.

use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 44.0;
/// Points of the line; each is a mean.
const POINTS: usize = 240;

/// Losses (natural logarithm, a token) on a logarithmic scale, with lines at 0.2, 0.5, 1, 2, 5, 10.
pub(crate) fn svg(losses: &[f32]) -> String {
    let bin = losses.len().div_ceil(POINTS).max(1);
    let mean = |c: &[f32]| f64::from(c.iter().sum::<f32>()) / c.len() as f64;
    let means: Vec<f64> = losses.chunks(bin).map(mean).collect();
    let lowest = means.iter().copied().fold(f64::MAX, f64::min);
    let highest = means.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let marks = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0];
    let low = marks.iter().copied().rfind(|m| *m <= lowest).unwrap_or(marks[0]);
    let high = marks.iter().copied().find(|m| *m >= highest).unwrap_or(20.0).max(low * 2.0);
    let x = |step: f64| LEFT + step / losses.len().max(1) as f64 * (WIDTH - LEFT - RIGHT);
    let y = |loss: f64| TOP + (high / loss.max(low)).ln() / (high / low).ln() * (HEIGHT - TOP - BOTTOM);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#444\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"18\">loss of the demo model, nats a token (each point the mean of {bin} steps)</text>\n"
    );
    let mut line = |text: String| writeln!(out, "{text}").expect("writing to a string");
    for mark in marks.into_iter().filter(|m| (low..=high).contains(m)) {
        let (y, to) = (y(mark), WIDTH - RIGHT);
        line(format!("<path d=\"M{LEFT} {y:.1}H{to}\" stroke=\"#ddd\"/>"));
        line(format!("<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{mark}</text>", LEFT - 6.0, y + 4.0));
    }
    for part in 0..=4 {
        let step = losses.len() * part / 4;
        line(format!("<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>", x(step as f64), HEIGHT - 24.0));
    }
    line(format!("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>", WIDTH / 2.0, HEIGHT - 6.0));
    let at = |(i, loss): (usize, &f64)| format!("{:.1},{:.1}", x((i * bin) as f64 + bin as f64 / 2.0), y(*loss));
    let points: Vec<String> = means.iter().enumerate().map(at).collect();
    line(format!("<polyline points=\"{}\" fill=\"none\" stroke=\"#26619c\" stroke-width=\"1.5\"/>", points.join(" ")));
    out + "</svg>\n"
}
