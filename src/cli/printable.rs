//! File names and other foreign text in messages: control characters are escaped, so that a name cannot move the cursor of a
//! terminal, change its title or look like another message.

use std::borrow::Cow;

/// Returns the text with control characters escaped: `\n`, `\u{1b}`.
pub(super) fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let escape = |escaped: String, char: char| {
        if char.is_control() {
            escaped + &char.escape_default().to_string()
        } else {
            escaped + char.encode_utf8(&mut [0; 4])
        }
    };
    text.chars().fold(String::new(), escape).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_control_characters_are_escaped() {
        assert_eq!(printable("a \\ \u{e9}.png"), "a \\ \u{e9}.png");
        let name = "\u{1b}]0;x\u{7}\n\u{9b}31m\u{7f}";
        assert_eq!(printable(name), r"\u{1b}]0;x\u{7}\n\u{9b}31m\u{7f}");
    }
}
