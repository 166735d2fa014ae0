//! OpenAPI links from a response to further calls: the id of an image can be sent instead of the image while its pixels
//! are cached. Links are part of the strict document only.

use serde_json::json;
use utoipa::openapi::RefOr;
use utoipa::openapi::link::Link;
use utoipa::openapi::path::Operation;

/// Operations whose response always holds an image id, with the runtime expression that locates the id.
const IDS: [(&str, &str); 3] = [
    ("caption_image", "$response.body#/image/id"),
    ("answer_question", "$response.body#/image/id"),
    ("score_similarity", "$response.body#/images/0/id"),
];

/// Adds links to the operation's 200 response, if that holds an image id.
pub(super) fn add(operation: &mut Operation) {
    let name = operation.operation_id.as_deref().unwrap_or_default();
    let Some((_, id)) = IDS.iter().find(|(known, _)| *known == name) else { return };
    let Some(RefOr::T(answer)) = operation.responses.responses.get_mut("200") else { return };
    let calls = [
        ("caption", "caption_image", json!({"image": id})),
        ("ask", "answer_question", json!({"image": id, "question": "what is in the picture?"})),
        ("compare", "score_similarity", json!({"image": id, "text": "two cats"})),
        ("embed", "embed_inputs", json!({"image": id})),
    ];
    for (link, target, body) in calls {
        let link_to = Link::builder()
            .operation_id(target)
            .request_body(Some(body))
            .description("Use the same image by its id, without sending it again.")
            .build();
        answer.links.insert(link.to_owned(), link_to.into());
    }
}
