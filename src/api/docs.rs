//! The API's description for people, at `/docs`.

use std::fmt::Write;

use axum::extract::Path;
use axum::response::Html;
use serde_json::Value;

use super::contracts::described;
use super::problem::{Problem, ProblemType};

/// The description as a page, without a script.
pub(super) async fn page() -> Html<String> {
    let document = described(true);
    let problems = ProblemType::ALL.iter().fold(String::new(), |mut text, problem_type| {
        let _ = write!(text, "{}", Explained(*problem_type));
        text
    });
    let page = include_str!("page/docs.html").replace("{{operations}}", &operations(&document));
    Html(page.replace("{{problems}}", &problems))
}

/// What one type of problem means: the page that its `type` is the address of.
pub(super) async fn problem(Path(name): Path<String>) -> Result<Html<String>, Problem> {
    let Some(problem_type) =
        ProblemType::ALL.iter().find(|problem_type| problem_type.slug() == name)
    else {
        return Err(ProblemType::NotFound.because("there is no such problem; /docs has all"));
    };
    let page = include_str!("page/problem.html").replace("{{title}}", problem_type.title());
    Ok(Html(page.replace("{{problem}}", &Explained(*problem_type).to_string())))
}

/// A type of problem as an item of a list in HTML.
struct Explained(ProblemType);

impl std::fmt::Display for Explained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (slug, title, meaning) = (self.0.slug(), self.0.title(), escaped(self.0.meaning()));
        let status = self.0.status().as_u16();
        write!(f, "<dt id=\"{slug}\"><code>{slug}</code> {status}: {title}</dt><dd>{meaning}</dd>")
    }
}

fn operations(document: &Value) -> String {
    let mut text = String::new();
    let paths = document["paths"].as_object().into_iter().flatten();
    for (path, method, operation) in paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().into_iter().flatten();
        methods.map(move |(method, operation)| (path, method, operation))
    }) {
        let line = |key: &str| escaped(operation[key].as_str().unwrap_or_default());
        let (path, method) = (escaped(path), method.to_uppercase());
        let _ = write!(
            text,
            "<section><h3>{}</h3><p><code>{method} {path}</code></p><p>{}</p><table><caption>Answers</caption>",
            line("summary"),
            line("description")
        );
        for (status, response) in operation["responses"].as_object().into_iter().flatten() {
            let description = escaped(response["description"].as_str().unwrap_or_default());
            let _ = write!(text, "<tr><th scope=\"row\">{status}</th><td>{description}</td></tr>");
        }
        text.push_str("</table></section>");
    }
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everything_described_is_on_the_page() {
        let document = described(true);
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
        assert!(!document.to_string().contains("nullable"));
        let Html(page) = page().await;
        for path in document["paths"].as_object().unwrap().keys() {
            assert!(page.contains(&escaped(path)), "{path}");
        }
        for problem_type in ProblemType::ALL {
            assert!(page.contains(&format!("id=\"{}\"", problem_type.slug())));
        }
    }
}
