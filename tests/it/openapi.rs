//! The committed document equals the code, and the code keeps the promises that the document makes.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::TestApp;

fn committed() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("openapi.yaml")
}

/// The strict document.
fn document() -> Value {
    serde_json::to_value(blip_server::http::strict_document()).unwrap()
}

/// The plain one, which is committed.
fn plain() -> Value {
    serde_json::to_value(blip_server::http::document()).unwrap()
}

/// What a `$ref` in the document leads to.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap(),
        None => value,
    }
}

/// True for the routes of this server's own API that run a model.
fn is_native_inference(item: &Value) -> bool {
    item["post"]["tags"][0] == "inference"
}

/// True for the route whose body is one JSON object per line.
fn is_bulk(path: &str) -> bool {
    path == "/bulk"
}

/// True for the routes that speak the API of others.
fn is_compatible(path: &str) -> bool {
    ["/v1/", "/api/", "/hf/"].iter().any(|prefix| path.starts_with(prefix))
}

/// The paths of the single calls of the inference endpoints. Each also has a batch call.
fn single_calls(document: &Value) -> Vec<String> {
    let paths = document["paths"].as_object().unwrap();
    let posts: Vec<&String> =
        paths.iter().filter(|(_, item)| is_native_inference(item)).map(|(path, _)| path).collect();
    let singles: Vec<String> =
        posts.iter().filter(|path| !path.ends_with("/batch")).map(|path| (*path).clone()).collect();
    let id = |path: &str| {
        document["paths"][path]["post"]["operationId"].as_str().unwrap_or_default().to_owned()
    };
    for path in &singles {
        assert_eq!(id(&format!("{path}/batch")), format!("{}_batch", id(path)), "{path}");
    }
    assert_eq!(posts.len(), 2 * singles.len(), "{posts:?}");
    assert!(singles.len() >= 4, "{singles:?}");
    singles
}

#[test]
fn openapi_yaml_matches_committed() {
    let generated = blip_server::http::document().to_yaml().unwrap();
    let committed = std::fs::read_to_string(committed()).unwrap();
    assert!(
        generated == committed,
        "openapi.yaml is out of date: cargo test --test it -- --ignored regenerate_openapi_yaml"
    );
}

#[test]
#[ignore = "writes openapi.yaml"]
fn regenerate_openapi_yaml() {
    let generated = blip_server::http::document().to_yaml().unwrap();
    std::fs::write(committed(), generated).unwrap();
}

#[test]
fn every_operation_has_an_id_of_its_own_and_a_summary() {
    let document = document();
    let mut ids = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path}"));
            assert!(operation["summary"].is_string(), "{id}");
            if !is_compatible(path) && !is_bulk(path) {
                ids.push(id.to_owned());
            }
        }
    }
    for id in ["caption_image", "answer_question", "score_similarity", "embed_inputs"] {
        assert!(ids.iter().any(|known| known == id), "{id}");
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "{ids:?}");
    let operations = [
        "check_health",
        "check_liveness",
        "check_readiness",
        "show_info",
        "show_metrics",
        "show_openapi_json",
        "show_openapi_yaml",
        "show_strict_openapi_json",
    ];
    assert_eq!(count, 2 * single_calls(&document).len() + operations.len(), "{ids:?}");
    for id in operations {
        assert!(ids.iter().any(|known| known == id), "{id}");
    }
}

#[test]
fn every_refusal_is_a_problem_and_every_inference_route_takes_three_encodings() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, item) in document["paths"].as_object().unwrap() {
        let Some(operation) = item.get("post").filter(|_| is_native_inference(item)) else {
            continue;
        };
        let content = operation["requestBody"]["content"].as_object().unwrap();
        let mut encodings: Vec<_> = content.keys().map(String::as_str).collect();
        encodings.sort_unstable();
        let expected =
            ["application/json", "application/octet-stream", "image/*", "multipart/form-data"];
        assert_eq!(encodings, expected, "{path}");
        let responses = operation["responses"].as_object().unwrap();
        let statuses: Vec<_> = responses.keys().map(String::as_str).collect();
        assert_eq!(
            statuses,
            [
                "200", "400", "401", "403", "404", "408", "413", "415", "422", "429", "500", "503",
                "504"
            ],
            "{path}"
        );
        for (status, response) in responses.iter().filter(|(status, _)| *status != "200") {
            let content = response["content"].as_object().unwrap();
            assert_eq!(
                content.keys().collect::<Vec<_>>(),
                ["application/problem+json"],
                "{path} {status}"
            );
            assert!(response["headers"]["x-request-id"].is_object(), "{path} {status}");
        }
    }
}

#[test]
fn every_route_but_health_and_documents_takes_a_bearer_key_and_tells_its_refusals() {
    let document = document();
    let scheme = &document["components"]["securitySchemes"]["api_key"];
    assert_eq!((&scheme["type"], &scheme["scheme"]), (&"http".into(), &"bearer".into()));
    for (path, item) in document["paths"].as_object().unwrap() {
        let open = path.starts_with("/health") || path.starts_with("/openapi");
        for operation in item.as_object().unwrap().values() {
            // Keys are off by default: without one is as good.
            let expected =
                if open { serde_json::json!([]) } else { serde_json::json!([{}, {"api_key": []}]) };
            assert_eq!(operation["security"], expected, "{path}");
            if is_compatible(path) {
                // One response describes all errors, in the format of that API.
                let error = &operation["responses"]["default"]["content"]["application/json"];
                assert!(error["schema"]["$ref"].is_string(), "{path}");
                let headers = &operation["responses"]["default"]["headers"];
                for header in ["www-authenticate", "retry-after", "ratelimit"] {
                    assert!(headers[header].is_object(), "{path} {header}");
                }
                continue;
            }
            // Without keys, the origin is checked everywhere, and requests for the documents are limited by address.
            let is_health = path.starts_with("/health");
            let refusals = [
                ("401", Some("www-authenticate"), !open),
                ("403", None, true),
                ("429", Some("retry-after"), !is_health),
            ];
            for (status, header, expected) in refusals {
                let headers = &operation["responses"][status]["headers"];
                let header = header.unwrap_or("traceresponse");
                assert_eq!(headers[header].is_object(), expected, "{path} {status}");
                assert_eq!(headers["x-request-id"].is_object(), expected, "{path} {status}");
            }
            let headers = &operation["responses"]["200"]["headers"];
            let is_limited = !is_health && path != "/metrics";
            for header in ["ratelimit", "ratelimit-policy"] {
                assert_eq!(headers[header].is_object(), is_limited, "{path} {header}");
            }
        }
    }
}

#[test]
fn requests_refuse_unknown_fields_in_the_document_too_and_no_field_lists_null() {
    let document = document();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let requests = [
        "CaptionRequest",
        "CaptionBatchRequest",
        "CaptionInput",
        "VqaRequest",
        "SimilarityRequest",
        "EmbeddingsRequest",
    ];
    for name in requests {
        assert_eq!(schemas[name]["additionalProperties"], false, "{name}");
        let properties = schemas[name]["properties"].as_object().unwrap();
        for (field, schema) in properties {
            assert!(!schema.to_string().contains("\"null\""), "{name}.{field}: {schema}");
        }
    }
    assert_eq!(schemas["CaptionRequest"]["properties"]["num_beams"]["maximum"], 8);
    assert_eq!(schemas["CaptionRequest"]["required"], serde_json::json!(["image"]));
}

#[test]
fn conditions_are_documented_for_single_requests_in_both_encodings() {
    let document = document();
    let conditions = |path: &str, encoding: &str| {
        let schema = &document["paths"][path]["post"]["requestBody"]["content"][encoding]["schema"];
        let name = schema["$ref"].as_str().map(|it| it.rsplit('/').next().unwrap());
        let schema = name.map_or(schema, |name| &document["components"]["schemas"][name]);
        schema["allOf"].clone()
    };
    for path in ["/caption", "/vqa", "/similarity", "/embeddings"] {
        let json = conditions(path, "application/json");
        assert!(json.as_array().is_some_and(|conditions| !conditions.is_empty()), "{path}");
        assert_eq!(conditions(path, "multipart/form-data"), json, "{path}");
        // In a batch they would stand in the way of defaults.
        assert!(conditions(&format!("{path}/batch"), "application/json").is_null(), "{path}");
    }
    let batch = &document["paths"]["/caption/batch"]["post"]["requestBody"]["content"];
    let form = &batch["multipart/form-data"]["schema"];
    assert_eq!(form["required"], serde_json::json!(["image"]));
    assert_eq!(form["properties"]["image"]["minItems"], 1);
}

#[test]
fn an_answer_with_an_image_links_to_the_calls_that_take_its_id() {
    let document = document();
    let links = |path: &str| document["paths"][path]["post"]["responses"]["200"]["links"].clone();
    for path in ["/caption", "/vqa", "/similarity"] {
        let links = links(path);
        assert_eq!(links.as_object().unwrap().len(), single_calls(&document).len(), "{path}");
        let id = links["ask"]["requestBody"]["image"].as_str().unwrap();
        assert!(id.starts_with("$response.body#/image") && id.ends_with("/id"), "{id}");
        assert_eq!(links["ask"]["operationId"], "answer_question");
    }
    // A text's vector has no image.
    assert!(links("/embeddings").is_null());
}

#[test]
fn a_stream_is_described_event_by_event() {
    let document = document();
    let answer = &document["paths"]["/caption"]["post"]["responses"]["200"]["content"];
    let schema = &answer["text/event-stream"]["schema"];
    assert_eq!(schema["$ref"], "#/components/schemas/CaptionEvent");
    let kinds = document["components"]["schemas"]["CaptionEvent"]["oneOf"].as_array().unwrap();
    let names: Vec<_> = kinds.iter().map(|kind| &kind["properties"]["event"]["const"]).collect();
    assert_eq!(names, ["delta", "done", "error"]);
}

#[test]
fn a_description_makes_no_object_of_a_field() {
    let text = document().to_string();
    assert!(!text.contains(
        r#"{"description":"The values, in the requested `encoding_format`.","type":"object"}"#
    ));
    assert!(!text.contains(r#""allOf":[{"type":"#), "an inlined schema beside its description");
    // A list field with a type of its own, too, has its description in its own schema.
    let words = &document()["components"]["schemas"]["CaptionRequest"]["properties"]["bad_words"];
    assert_eq!((&words["type"], &words["maxItems"]), (&"array".into(), &128.into()), "{words}");
    assert!(words["description"].is_string() && words["allOf"].is_null(), "{words}");
}

#[test]
fn every_reference_leads_somewhere() {
    for document in [document(), plain()] {
        let text = document.to_string();
        let references: Vec<&str> =
            text.split("\"$ref\":\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert!(references.len() > 20);
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference}"));
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }
}

/// YAML 1.1, which many parsers still read, takes these words for booleans, unless they are quoted.
#[test]
fn no_text_of_the_document_is_a_boolean_of_yaml_1_1() {
    let yaml = blip_server::http::document().to_yaml().unwrap();
    assert!(yaml.contains("\n        \"n\":\n"), "the field n of chat completions is quoted");
    for line in yaml.lines() {
        let (key, value) = line.split_once(": ").unwrap_or((line.trim_end_matches(':'), ""));
        for word in [key, value] {
            let word = word.trim().trim_start_matches("- ").to_ascii_lowercase();
            assert!(!["y", "n", "yes", "no", "on", "off"].contains(&&*word), "{line}");
        }
    }
}

#[test]
fn the_plain_document_has_the_same_operations_and_less_to_stumble_over() {
    let (strict, plain) = (document(), plain());
    assert_eq!(plain["servers"], serde_json::json!([{"url": "/"}]));
    assert_eq!(plain["info"]["license"]["identifier"], "MIT OR Apache-2.0");
    let paths = |document: &Value| document["paths"].as_object().unwrap().keys().cloned().collect();
    let (strict_paths, plain_paths): (Vec<String>, Vec<String>) = (paths(&strict), paths(&plain));
    assert_eq!(strict_paths, plain_paths);
    let mut posts = 0;
    for (path, item) in plain["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let same = &strict["paths"][path][method];
            assert_eq!(operation["operationId"], same["operationId"], "{path}");
            let statuses = |operation: &Value| -> Vec<String> {
                operation["responses"].as_object().unwrap().keys().cloned().collect()
            };
            assert_eq!(statuses(operation), statuses(same), "{path}");
            let parameters = |document, operation: &Value| -> Vec<Value> {
                let listed = operation["parameters"].as_array().into_iter().flatten();
                listed.map(|parameter| resolved(document, parameter).clone()).collect()
            };
            assert_eq!(parameters(&plain, operation), parameters(&strict, same), "{path}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let response = resolved(&plain, response);
                for (media_type, _) in response["content"].as_object().into_iter().flatten() {
                    assert_ne!(media_type, "text/event-stream", "{path}");
                }
                let header = resolved(&plain, &response["headers"]["x-request-id"]);
                assert!(header["schema"].is_object(), "{path} {status}");
            }
        }
        let Some(operation) = item.get("post") else { continue };
        let content = operation["requestBody"]["content"].as_object().unwrap();
        if is_compatible(path) || is_bulk(path) {
            let media_types: &[&str] = match path.as_str() {
                "/bulk" => &["application/x-ndjson"],
                "/hf/image-to-text" => &["application/json", "application/octet-stream"],
                _ => &["application/json"],
            };
            assert_eq!(content.keys().collect::<Vec<_>>(), media_types, "{path}");
            continue;
        }
        let media_types: Vec<&str> = content.keys().map(String::as_str).collect();
        assert_eq!(
            media_types,
            ["application/json", "application/octet-stream", "multipart/form-data"],
            "{path}"
        );
        let form = &content["multipart/form-data"]["schema"];
        for needed in form["required"].as_array().into_iter().flatten() {
            assert!(needed == "image" || needed == "labels", "{path} {needed}");
        }
        assert!(form["allOf"].is_null(), "{path}");
        posts += 1;
    }
    assert_eq!(posts, 2 * single_calls(&strict).len());
    for name in ["CaptionRequest", "VqaRequest", "SimilarityRequest", "EmbeddingsRequest"] {
        assert!(plain["components"]["schemas"][name]["allOf"].is_null(), "{name}");
        assert!(strict["components"]["schemas"][name]["allOf"].is_array(), "{name}");
    }
    let yaml = blip_server::http::document().to_yaml().unwrap();
    assert!(yaml.len() < 272 << 10, "{}", yaml.len());
}

#[test]
fn the_strict_document_bounds_the_routes_of_other_apis_and_the_plain_one_has_no_such_bounds() {
    let (strict, plain) = (document(), plain());
    let field = |document: &Value, schema: &str, field: &str| {
        document["components"]["schemas"][schema]["properties"][field].clone()
    };
    for (schema, name, min) in [
        ("OpenAiEmbeddingsRequest", "input", 1),
        ("HfFeaturesRequest", "inputs", 1),
        ("OllamaEmbedRequest", "input", 0),
    ] {
        let bounded = field(&strict, schema, name);
        assert_eq!(bounded["minLength"], min, "{bounded}");
        assert_eq!((&bounded["minItems"], &bounded["maxItems"]), (&min.into(), &2048.into()));
        assert!(bounded["type"].is_null() && bounded["description"].is_string(), "{bounded}");
        let free = field(&plain, schema, name);
        assert!(free["minLength"].is_null() && free["maxItems"].is_null(), "{free}");
    }
    assert_eq!(field(&strict, "ChatCompletionRequest", "n")["maximum"], 8);
    let raw = &strict["paths"]["/hf/image-to-text"]["post"]["requestBody"]["content"];
    assert_eq!(raw["image/*"]["schema"]["format"], "binary");
    for schema in ["ClassifyRequest", "ClassifyBatchRequest", "ClassifyInput"] {
        let pattern = field(&strict, schema, "template")["pattern"].clone();
        assert!(pattern.as_str().unwrap().contains(r"\{\}"), "{schema}: {pattern}");
        assert!(field(&plain, schema, "template")["pattern"].is_null(), "{schema}");
    }
    let ranked = strict["components"]["schemas"]["CaptionRequest"]["allOf"][0]["oneOf"][1].clone();
    assert_eq!(ranked["title"], "Ranked");
    for flag in ["verify", "explain"] {
        assert_eq!(ranked["properties"][flag], serde_json::json!({"const": false}));
    }
    assert_eq!(ranked["properties"]["prompt"], false);
    for path in ["/v1/chat/completions", "/api/generate", "/api/chat"] {
        let headers = &strict["paths"][path]["post"]["responses"]["200"]["headers"];
        assert!(headers["x-blip-note"].is_object(), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_of_a_request_is_answered() {
    let app = TestApp::start();
    let document = document();
    let mut sent = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        let Some(operation) = item.get("post").filter(|_| !is_bulk(path)) else { continue };
        let reference = &operation["requestBody"]["content"]["application/json"]["schema"]["$ref"];
        let name = reference.as_str().unwrap().rsplit('/').next().unwrap();
        let example = &document["components"]["schemas"][name]["example"];
        let answer = app.json(path, example).await;
        if is_compatible(path) {
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            continue;
        }
        let answer = answer.ok();
        assert_eq!(answer.get("failed").unwrap_or(&Value::from(0)), 0, "{path}: {answer}");
        sent += 1;
    }
    assert_eq!(sent, 2 * single_calls(&document).len());
}

#[tokio::test]
async fn a_served_document_tells_the_limits_of_its_server() {
    let app = TestApp::with(|config| config.http.limits.max_new_tokens = 77);
    let served = app.get("/openapi.json").await.ok();
    for request in ["CaptionRequest", "VqaInput"] {
        let fields = &served["components"]["schemas"][request]["properties"];
        assert_eq!(fields["max_new_tokens"]["maximum"], 77, "{request}");
    }
}

#[tokio::test]
async fn the_served_documents_are_this_one() {
    let app = TestApp::start();
    assert!(app.get("/openapi.json").await.ok() == plain());
    assert!(app.get("/openapi-strict.json").await.ok() == document());
    let yaml = app.get("/openapi.yaml").await;
    assert_eq!(yaml.header("content-type"), "application/yaml");
    assert!(yaml.text() == std::fs::read_to_string(committed()).unwrap());
}
