//! Image values, and texts on their way through the tokenizer.

use std::path::Path;
use std::sync::LazyLock;

use blip_server::input::{ImageValue, InputSettings, Tokenizer, check_text};

/// Base64, data URIs, addresses, ids. White space around a value is ignored, and so is the case of an id.
pub(crate) fn image_value(data: &[u8]) {
    let settings = InputSettings { max_image_bytes: 4096, ..InputSettings::default() };
    let Ok(text) = std::str::from_utf8(data) else { return };
    match ImageValue::parse(text, &settings) {
        Ok(ImageValue::Bytes(bytes)) => assert!(bytes.len() <= 4096),
        Ok(ImageValue::Id(id)) => {
            assert_eq!(id.to_string(), text.trim_ascii().to_ascii_lowercase());
        }
        Ok(ImageValue::Url(url)) => assert_eq!(url, text.trim_ascii()),
        Err(error) => assert!(error.to_string().len() < 300),
    }
}

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let json = include_str!("../../fixtures/base/tokenizer.json");
    let config = include_str!("../../fixtures/base/tokenizer_config.json");
    let settings = InputSettings::default();
    Tokenizer::from_texts(Path::new("tokenizer.json"), json, config, &settings).unwrap()
});

/// Prompts: what is accepted becomes ids of the vocabulary, and these a text again.
pub(crate) fn prompt(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if check_text(text, &InputSettings::default()).is_err() {
        assert!(TOKENIZER.encode(text).is_err());
        return;
    }
    let ids = TOKENIZER.encode(text).unwrap();
    let size = TOKENIZER.vocab_size();
    assert!(ids.as_slice().iter().all(|&id| (id as usize) < size));
    assert_eq!(ids.as_slice().first(), Some(&TOKENIZER.cls_id()));
    assert_eq!(ids.as_slice().last(), Some(&TOKENIZER.sep_id()));
    let truncated = TOKENIZER.encode_truncated(text, 16).unwrap();
    assert!(truncated.len() <= 16);
    let half = ids.len() / 2;
    let whole = TOKENIZER.decode(ids.as_slice());
    let added = TOKENIZER.decode_continuation(&ids.as_slice()[..half], &ids.as_slice()[half..]);
    assert!(added.len() <= whole.len());
}
