//! Command lines that are written elsewhere, held against the command line itself.

use super::Arguments;
use clap::CommandFactory;
use serde_json::Value;

/// The words of a line as a shell reads them; quotes hold words together.
fn words(line: &str) -> Vec<String> {
    let (mut all, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match (c, all.last_mut()) {
            ('"', _) => quoted = !quoted,
            (' ', _) if !quoted => all.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    all.retain(|w| !w.is_empty());
    all
}

#[test]
fn flags_do_not_contradict_each_other() {
    let command = Arguments::command();
    // Of one name clap keeps one kind of value: a command's own flag would be read as the global one, or the other way round.
    let global: Vec<_> = command.get_arguments().filter(|a| a.is_global_set()).map(|a| a.get_id().clone()).collect();
    for sub in command.get_subcommands() {
        let own = sub.get_arguments().find(|a| global.contains(a.get_id()));
        assert!(own.is_none(), "{} --{}", sub.get_name(), own.unwrap().get_id());
    }
    command.debug_assert();
}

/// What the demo model answers when it is asked how to do something.
#[test]
fn the_demo_models_answers_are_commands() {
    let howto: Value = serde_json::from_str(include_str!("../../../examples/demo-model/data/howto.json")).unwrap();
    let topics = howto["topics"].as_array().or(howto["intents"].as_array()).unwrap();
    let lines = topics.iter().filter_map(|t| t["command"].as_str()).filter(|line| line.starts_with("lapis "));
    let lines: Vec<&str> = lines.collect();
    assert!(lines.len() > 30, "{}", lines.len());
    for line in lines {
        let parsed = Arguments::command().try_get_matches_from(words(line));
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
}
