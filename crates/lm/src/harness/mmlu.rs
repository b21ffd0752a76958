//! MMLU: the harness's 57 tasks of one pattern, one a subject, and its groups of them. Knows nothing of how tasks are run.

use super::{Outcome, Score};
use serde_json::{Map, Value};

/// Groups of subjects.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "humanities",
        &[
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
    (
        "other",
        &[
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
    (
        "social_sciences",
        &[
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        "stem",
        &[
            "abstract_algebra",
            "anatomy",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
];

/// What all subjects have, as a task of the harness.
const PATTERN: &str = include_str!("tasks/mmlu.yaml");

/// The settings of `mmlu_SUBJECT`.
pub(super) fn settings(name: &str) -> Option<Result<Map<String, Value>, String>> {
    let subject = name.strip_prefix("mmlu_")?;
    GROUPS.iter().find(|(_, subjects)| subjects.contains(&subject))?;
    let words = subject.replace('_', " ");
    Some(crate::yaml::parse(PATTERN).map(|mut all| {
        let about = format!("The following are multiple choice questions (with answers) about {words}.\n\n");
        for (key, value) in [("task", name), ("task_alias", &words), ("dataset_name", subject), ("description", &about)]
        {
            all.insert(key.into(), value.into());
        }
        all
    }))
}

/// The tasks of `mmlu` or of one of its groups.
pub(super) fn members(name: &str) -> Option<Vec<String>> {
    let part = if name == "mmlu" { "" } else { name.strip_prefix("mmlu_")? };
    let groups = GROUPS.iter().filter(|(group, _)| part.is_empty() || *group == part);
    let all: Vec<String> = groups.flat_map(|(_, subjects)| *subjects).map(|s| format!("mmlu_{s}")).collect();
    (!all.is_empty()).then_some(all)
}

/// What a group came to, and, of `mmlu`, each of its groups: means over all questions, with the harness's pooled errors. A group of
/// which a task is not among the outcomes is left out.
pub fn groups(name: &str, outcomes: &[Outcome]) -> Vec<Outcome> {
    let parts = GROUPS.iter().map(|(group, _)| format!("mmlu_{group}")).filter(|_| name == "mmlu");
    std::iter::once(name.to_string()).chain(parts).filter_map(|name| pooled(&name, outcomes)).collect()
}

fn pooled(name: &str, outcomes: &[Outcome]) -> Option<Outcome> {
    let find = |task: &String| outcomes.iter().find(|o| o.name == *task);
    let own: Vec<&Outcome> = members(name)?.iter().map(find).collect::<Option<_>>()?;
    let first = own.first()?;
    let n: usize = own.iter().map(|o| o.count).sum();
    let mut scores = Vec::new();
    for score in &first.scores {
        let same = |o: &&Outcome| {
            let found = o.scores.iter().find(|s| s.metric == score.metric && s.filter == score.filter)?;
            Some((o.count as f64, found.value, found.error))
        };
        let all: Vec<(f64, f64, Option<f64>)> = own.iter().map(same).collect::<Option<_>>()?;
        let value = all.iter().map(|(n, x, _)| n * x).sum::<f64>() / n as f64;
        let squares: Option<f64> = all.iter().map(|(n, _, e)| e.map(|e| (n - 1.0) * e * e * n)).sum();
        let error = squares.filter(|_| n > own.len()).map(|s| (s / (n - own.len()) as f64 / n as f64).sqrt());
        scores.push(Score { value, error, ..score.clone() });
    }
    Some(Outcome {
        name: name.into(),
        alias: name.strip_prefix("mmlu_").unwrap_or(name).replace('_', " "),
        version: first.version,
        shots: first.shots,
        count: n,
        rows: own.iter().map(|o| o.rows).sum(),
        cut: 0,
        scores,
        samples: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_means_over_all_questions() {
        assert_eq!(members("mmlu").unwrap().len(), 57);
        assert_eq!(members("mmlu_anatomy"), None);
        let score = |value, error| Score {
            metric: "acc".into(),
            filter: "none".into(),
            value,
            error: Some(error),
            higher_is_better: true,
        };
        let one = |(i, name): (usize, String)| Outcome {
            name: name.clone(),
            alias: name,
            version: Some(1.0),
            shots: 0,
            count: if i == 0 { 30 } else { 10 },
            rows: 40,
            cut: 0,
            scores: vec![if i == 0 { score(0.8, 0.07) } else { score(0.4, 0.1) }],
            samples: Vec::new(),
        };
        let all: Vec<Outcome> = members("mmlu_stem").unwrap().into_iter().enumerate().map(one).collect();
        let found = groups("mmlu_stem", &all);
        let n = 30.0 + 18.0 * 10.0;
        let value = (30.0 * 0.8 + 180.0 * 0.4) / n;
        // lm_eval.api.metrics.pooled_sample_stderr
        let error = ((29.0 * 0.07f64.powi(2) * 30.0 + 18.0 * 9.0 * 0.01 * 10.0) / (n - 19.0) / n).sqrt();
        let own = &found[0].scores[0];
        assert!((own.value - value).abs() < 1e-12 && (own.error.unwrap() - error).abs() < 1e-12, "{own:?}");
        assert_eq!((found.len(), found[0].count), (1, 210));
        assert_eq!(groups("mmlu", &all).iter().map(|o| o.name.as_str()).collect::<Vec<_>>(), ["mmlu_stem"]);
        assert!(groups("mmlu_stem", &all[1..]).is_empty() && groups("piqa", &all).is_empty());
    }
}
