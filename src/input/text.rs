//! The checks that a text must pass before it is tokenised.

use super::{InputError, InputSettings};

/// Checks the size and the characters of a text.
///
/// # Errors
/// `TextTooLong` (bytes are checked first, then characters); `InvalidText` for DEL and for C0 control characters
/// (including NUL) other than line feed, carriage return and tab.
pub fn check_text(text: &str, settings: &InputSettings) -> Result<(), InputError> {
    let too_long = |length, limit, unit| Err(InputError::TextTooLong { length, limit, unit });
    if text.len() > settings.max_text_bytes {
        return too_long(text.len(), settings.max_text_bytes, "bytes");
    }
    let characters = text.chars().count();
    if characters > settings.max_text_chars {
        return too_long(characters, settings.max_text_chars, "characters");
    }
    let refused =
        |&(_, c): &(usize, char)| c.is_ascii_control() && !matches!(c, '\n' | '\r' | '\t');
    match text.char_indices().find(refused) {
        Some((position, character)) => {
            Err(InputError::InvalidText { character: u32::from(character), position })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_exact_in_bytes_and_characters() {
        let settings =
            InputSettings { max_text_chars: 3, max_text_bytes: 6, ..InputSettings::default() };
        let check = |text| check_text(text, &settings);
        assert_eq!(check("ééé"), Ok(()));
        let too_long = |length, limit, unit| Err(InputError::TextTooLong { length, limit, unit });
        assert_eq!(check("éééx"), too_long(7, 6, "bytes"));
        assert_eq!(check("abcd"), too_long(4, 3, "characters"));
    }

    #[test]
    fn control_characters_are_refused_with_their_place() {
        let check = |text| check_text(text, &InputSettings::default());
        assert_eq!(check("a\tb\r\nc"), Ok(()));
        assert_eq!(check("é\0"), Err(InputError::InvalidText { character: 0, position: 2 }));
        assert_eq!(check("\x1b[1m"), Err(InputError::InvalidText { character: 27, position: 0 }));
        assert_eq!(check("\x7f"), Err(InputError::InvalidText { character: 127, position: 0 }));
    }
}
