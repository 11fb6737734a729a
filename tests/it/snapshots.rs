//! Texts that users read, as they were reviewed last. A change of one is accepted with
//! `INSTA_UPDATE=always cargo test --test it snapshots`.

use std::fmt::Write;

use floodgate::api::problem::ProblemType;

use crate::harness::process::bare_floodgate;

const COMMANDS: &[&str] = &[
    "",
    "demo",
    "migrate",
    "up",
    "api",
    "worker",
    "sale",
    "sale open",
    "sale show",
    "sale list",
    "sale restock",
    "sale verification",
    "sale close",
    "sale archive",
    "sale restore",
    "user erase",
    "order show",
    "replay",
    "dead-letters list",
    "dead-letters redrive",
    "dead-letters purge",
    "token",
    "operator-log",
    "shards",
    "user-service",
    "check",
    "config show",
    "settings",
];

#[test]
fn help_is_as_it_was_reviewed() {
    let mut all = String::new();
    for command in COMMANDS {
        let arguments: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let output = bare_floodgate(&arguments).env("COLUMNS", "80").output().expect("runs");
        let help = String::from_utf8(output.stdout).expect("UTF-8");
        writeln!(all, "$ floodgate {}\n\n{help}", arguments.join(" ")).expect("a string");
    }
    insta::assert_snapshot!("help", all);
}

#[test]
fn problems_are_as_they_were_reviewed() {
    let problems = ProblemType::ALL.iter().fold(String::new(), |mut all, problem| {
        let (status, slug) = (problem.status().as_u16(), problem.slug());
        let (title, meaning) = (problem.title(), problem.meaning());
        writeln!(all, "{status} {slug}\n  {title}\n  {meaning}").expect("a string");
        all
    });
    insta::assert_snapshot!("problems", problems);
}
