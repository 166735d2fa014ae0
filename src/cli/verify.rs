//! The command `verify`: checks the official checkpoints against their known answers. It starts the complete server on
//! a loopback port and sends JSON requests to it. It needs network access; the first run downloads about 4 GB.
//!
//! The expected answers come from transformers' integration tests (`tests/models/blip/test_modeling_blip.py`, greedy
//! search).

use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::error::CommandError;
use super::healthcheck::plain_client;
use crate::app::App;
use crate::config::Config;
use crate::hub::{DownloadProgress, HubSource, ModelSource, fetch_file};

/// Hub repository and file name of the picture for all known answers. It shows a woman and her dog on a beach.
const PICTURE: (&str, &str) = ("hf-internal-testing/blip-test-image", "demo.jpg");
/// Relative and absolute tolerance of the probabilities, as in transformers' test.
const TOLERANCE: f64 = 1e-3;
/// Timeout of one request, far longer than a base model on a slow CPU needs for one answer.
const TIMEOUT: Duration = Duration::from_secs(300);

/// One request with its expected answer.
struct Known {
    checkpoint: &'static str,
    endpoint: &'static str,
    /// Name and value of a request field in addition to `image` and `model`.
    field: Option<(&'static str, &'static str)>,
    /// JSON pointers into the response, each with the value expected there.
    expected: &'static [(&'static str, Expected)],
}

enum Expected {
    Text(&'static str),
    Number(f64),
}

const KNOWN: [Known; 4] = [
    Known {
        checkpoint: "Salesforce/blip-image-captioning-base",
        endpoint: "caption",
        field: None,
        expected: &[
            ("/captions/0/text", Expected::Text("a woman sitting on the beach with her dog")),
            ("/captions/0/token_count", Expected::Number(10.0)),
        ],
    },
    Known {
        checkpoint: "Salesforce/blip-image-captioning-base",
        endpoint: "caption",
        field: Some(("prompt", "a picture of")),
        expected: &[
            ("/captions/0/text", Expected::Text("a picture of a woman and her dog on the beach")),
            ("/captions/0/token_count", Expected::Number(9.0)),
        ],
    },
    Known {
        checkpoint: "Salesforce/blip-vqa-base",
        endpoint: "vqa",
        field: Some(("question", "how many dogs are in the picture?")),
        expected: &[
            ("/answers/0/answer", Expected::Text("1")),
            ("/answers/0/token_count", Expected::Number(2.0)),
        ],
    },
    Known {
        checkpoint: "Salesforce/blip-itm-base-coco",
        endpoint: "similarity",
        field: Some(("text", "A woman and her dog sitting in a beach")),
        expected: &[
            ("/scores/0/0/match", Expected::Number(0.9971)),
            ("/scores/0/0/cosine", Expected::Number(0.5162)),
        ],
    },
];

/// Verifies the official checkpoints, which replace the configured models; all other settings apply.
pub(super) fn run(mut config: Config) -> Result<(), CommandError> {
    let mut checkpoints: Vec<&str> = KNOWN.iter().map(|known| known.checkpoint).collect();
    checkpoints.dedup();
    config.models =
        checkpoints.into_iter().map(|id| ModelSource::new(None, id)).collect::<Result<_, _>>()?;
    super::runtime()?.block_on(verify(config))
}

async fn verify(mut config: Config) -> Result<(), CommandError> {
    // Disable API keys and rate limits, because this process is the only client and uses loopback.
    (config.http.auth, config.http.rate_limit) = (None, None);
    let (repository, file) = PICTURE;
    let repository = HubSource { id: repository.to_owned(), revision: None };
    let picture = fetch_file(&repository, file, &config.hub, &DownloadProgress::detect()).await;
    let picture = picture.map_err(|error| {
        let action = "verify needs the official checkpoints, from the hub or from its cache";
        CommandError::failed(action, error)
    })?;
    let failed = |error| CommandError::failed("cannot listen on loopback", error);
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let app = App::build(config).map_err(|error| CommandError::failed("cannot start", error))?;
    let (ready, shutdown) = (app.ready(), CancellationToken::new());
    let mut server = pin!(app.serve(listener, shutdown.clone()));
    let failed = |error| CommandError::of_server("cannot serve the official checkpoints", error);
    tokio::select! {
        served = &mut server => return served.map_err(failed),
        () = ready.cancelled() => {}
    }
    let questions = async {
        let outcome = ask_all(&format!("http://{address}"), &picture).await;
        shutdown.cancel();
        outcome
    };
    let (served, outcome) = tokio::join!(server, questions);
    served.map_err(failed)?;
    outcome
}

async fn ask_all(server: &str, picture: &Path) -> Result<(), CommandError> {
    let bytes = std::fs::read(picture).map_err(|error| {
        CommandError::failed(format!("cannot read {}", picture.display()), error)
    })?;
    let image = base64::engine::general_purpose::STANDARD.encode(bytes);
    let client = plain_client(TIMEOUT)?;
    let mut wrong = 0;
    for known in &KNOWN {
        let answer = ask(&client, server, known, &image).await?;
        let differences = differences(known, &answer);
        wrong += usize::from(!differences.is_empty());
        super::print(&report(known, &differences))?;
    }
    if wrong > 0 {
        return Err(CommandError::Negative(format!(
            "{wrong} of {} known answers differ",
            KNOWN.len()
        )));
    }
    Ok(())
}

async fn ask(
    client: &reqwest::Client,
    server: &str,
    known: &Known,
    image: &str,
) -> Result<Value, CommandError> {
    let url = format!("{server}/{}", known.endpoint);
    let mut request = json!({ "image": image, "model": known.checkpoint });
    if let Some((name, text)) = known.field {
        request[name] = json!(text);
    }
    let failed =
        |error: reqwest::Error| CommandError::failed(format!("no answer from {url}"), error);
    let response = client
        .post(&url)
        .header("content-type", "application/json")
        // A slow CPU may take a long time, so request the client's whole timeout as the deadline. The server caps it at
        // its own limit.
        .header("x-request-timeout-ms", TIMEOUT.as_millis().to_string())
        .body(request.to_string())
        .send()
        .await
        .map_err(failed)?;
    let body = response.bytes().await.map_err(failed)?;
    serde_json::from_slice(&body)
        .map_err(|error| CommandError::failed(format!("{url} did not answer with JSON"), error))
}

/// Describes each difference between `answer` and the expected values; empty if all match.
fn differences(known: &Known, answer: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (place, expected) in known.expected {
        let actual = answer.pointer(place);
        let (same, wanted) = match expected {
            Expected::Text(text) => (actual.and_then(Value::as_str) == Some(text), json!(text)),
            Expected::Number(number) => {
                let close =
                    |actual: f64| (actual - number).abs() <= TOLERANCE * (1.0 + number.abs());
                (actual.and_then(Value::as_f64).is_some_and(close), json!(number))
            }
        };
        if !same {
            // If the field is missing, show the whole answer, because in that case it is a problem document that
            // explains the failure.
            found.push(format!("{place} is {}, expected {wanted}", actual.unwrap_or(answer)));
        }
    }
    found
}

fn report(known: &Known, differences: &[String]) -> String {
    let field = known.field.map_or(String::new(), |(name, text)| format!(" {name} \"{text}\""));
    let verdict = if differences.is_empty() { "ok   " } else { "WRONG" };
    let first = format!("{verdict} {} /{}{field}", known.checkpoint, known.endpoint);
    let lines = differences.iter().map(|difference| format!("      {difference}"));
    std::iter::once(first).chain(lines).map(|line| line + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_answer_passes_and_another_is_named() {
        let known = &KNOWN[0];
        let good = json!({"captions": [{"text": "a woman sitting on the beach with her dog", "token_count": 10}]});
        assert_eq!(differences(known, &good), [""; 0]);
        let other = json!({"captions": [{"text": "trails trails", "token_count": 10}]});
        let found = differences(known, &other);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("trails trails") && found[0].contains("her dog"), "{found:?}");
        assert!(report(known, &found).starts_with("WRONG"));
    }

    #[test]
    fn probabilities_have_the_tolerance_of_the_reference_and_no_more() {
        let scores = |matching: f64, cosine: f64| json!({"scores": [[{"match": matching, "cosine": cosine}]]});
        let known = &KNOWN[3];
        assert_eq!(differences(known, &scores(0.9965, 0.5170)), [""; 0]);
        assert_eq!(differences(known, &scores(0.9798, 0.5162)).len(), 1);
        assert_eq!(differences(known, &scores(0.9971, 0.5053)).len(), 1);
    }

    #[test]
    fn a_problem_instead_of_an_answer_is_shown() {
        let found = differences(&KNOWN[2], &json!({"code": "overloaded"}));
        assert!(found[0].contains("overloaded"), "{found:?}");
    }
}
