//! The description of a picture in an XMP sidecar (`photo.jpg.xmp`): `dc:description`, a list of texts by language. An
//! existing file keeps every other byte. Source: XMP specification part 1 (ISO 16684-1), sections 7 and 8.2.

use std::ops::Range;

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::{Namespace, ResolveResult};
use quick_xml::reader::NsReader;

const DC: &str = "http://purl.org/dc/elements/1.1/";
const RDF: &str = "http://www.w3.org/1999/02/22-rdf-syntax-ns#";

/// The language of the text for readers that ask for none. XMP wants it first.
const DEFAULT: &str = "x-default";

/// Why a file cannot be changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum XmpError {
    #[error("no XML: {0}")]
    Xml(#[from] quick_xml::Error),
    #[error("no XMP: it has no rdf:RDF")]
    NoRdf,
    #[error("its dc:description is no list of texts by language")]
    OtherDescription,
    #[error("its structure is not understood")]
    NotUnderstood,
}

/// What a file contains of the description. Positions are in bytes.
#[derive(Debug, Default)]
struct Found {
    /// The first `rdf:Description`.
    description: Option<Tag>,
    /// Where `</rdf:RDF>` begins.
    rdf_end: Option<usize>,
    /// `dc:description`.
    texts: Option<Range<usize>>,
    /// The `rdf:Alt` in it.
    alt: Option<Tag>,
    /// Where `</rdf:Alt>` begins.
    alt_end: usize,
    entries: Vec<Entry>,
    /// Number of elements around `dc:description`, while the reader is in it.
    inside: Option<usize>,
    /// True if the description is an attribute.
    is_attribute: bool,
}

/// A start tag, or an empty one.
#[derive(Debug)]
struct Tag {
    at: Range<usize>,
    /// Its name with its prefix.
    name: String,
    is_empty: bool,
}

/// A text in one language.
#[derive(Debug)]
struct Entry {
    language: String,
    tag: Tag,
    content: Range<usize>,
}

/// A part of a file that is replaced.
type Edit = (Range<usize>, String);

/// Returns the description in this language; `None` without a language is the default. Blank texts do not count.
pub(super) fn description(file: &str, language: Option<&str>) -> Result<Option<String>, XmpError> {
    let (_, file) = without_mark(file);
    let found = Found::read(file)?;
    let text = found.entry(language_of(language)).map(|entry| &file[entry.content.clone()]);
    Ok(text.filter(|text| !text.trim().is_empty()).map(str::to_owned))
}

/// Splits a byte order mark off, which the positions of the parser do not count.
fn without_mark(file: &str) -> (&str, &str) {
    file.split_at(if file.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 })
}

fn language_of(language: Option<&str>) -> &str {
    language.unwrap_or(DEFAULT)
}

/// Returns a file with only a description.
pub(super) fn new(text: &str, language: Option<&str>) -> String {
    let list = list_of(text, language);
    format!(
        "<?xpacket begin=\"\u{feff}\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n\
         <x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\n <rdf:RDF xmlns:rdf=\"{RDF}\">\n  \
         <rdf:Description rdf:about=\"\">\n   {list}\n  </rdf:Description>\n </rdf:RDF>\n</x:xmpmeta>\n\
         <?xpacket end=\"w\"?>\n"
    )
}

/// Returns the file with this description in this language. Nothing else changes.
///
/// # Errors
/// If the file is no XMP, or has a description of another kind.
pub(super) fn merged(file: &str, text: &str, language: Option<&str>) -> Result<String, XmpError> {
    let language = language.filter(|language| !language.eq_ignore_ascii_case(DEFAULT));
    let (mark, file) = without_mark(file);
    let found = Found::read(file)?;
    if found.is_attribute {
        return Err(XmpError::OtherDescription);
    }
    let mut edits = if let Some(alt) = &found.alt {
        found.edits_of_list(file, alt, text, language)
    } else if found.texts.is_some() {
        return Err(XmpError::OtherDescription);
    } else {
        vec![found.new_list(file, text, language)?]
    };
    edits.sort_by_key(|(range, _)| (range.start, range.end));
    let (mut result, mut copied) = (mark.to_owned(), 0);
    for (range, new) in edits {
        result.push_str(&file[copied..range.start]);
        result.push_str(&new);
        copied = range.end;
    }
    result.push_str(&file[copied..]);
    // Whatever the file contained: what is written must read back as the text.
    let written = description(&result, language).ok().flatten();
    if written.as_deref() != Some(escaped(text).as_str()) {
        return Err(XmpError::NotUnderstood);
    }
    Ok(result)
}

impl Found {
    fn read(file: &str) -> Result<Self, XmpError> {
        let mut found = Self::default();
        let mut reader = NsReader::from_str(file);
        let mut open: Vec<(bool, bool, String)> = Vec::new();
        loop {
            let begin = position(&reader);
            let (namespace, event) = reader.read_resolved_event()?;
            let (is_rdf, is_dc) = (is(&namespace, RDF), is(&namespace, DC));
            let at = begin..position(&reader);
            match event {
                Event::Start(tag) => {
                    let name = tag.local_name().as_ref().to_owned();
                    found.begin(&open, (is_rdf, is_dc, &name), &tag, at, false);
                    open.push((is_rdf, is_dc, name));
                }
                Event::Empty(tag) => {
                    let name = tag.local_name().as_ref().to_owned();
                    found.begin(&open, (is_rdf, is_dc, &name), &tag, at, true);
                }
                Event::End(_) => {
                    if let Some((is_rdf, is_dc, name)) = open.pop() {
                        found.end((is_rdf, is_dc, &name), &open, at);
                    }
                }
                Event::Eof => return Ok(found),
                Event::Text(_)
                | Event::CData(_)
                | Event::Comment(_)
                | Event::Decl(_)
                | Event::PI(_)
                | Event::DocType(_)
                | Event::GeneralRef(_) => {}
            }
        }
    }

    fn begin(
        &mut self,
        open: &[(bool, bool, String)],
        (is_rdf, is_dc, name): (bool, bool, &str),
        tag: &BytesStart<'_>,
        at: Range<usize>,
        is_empty: bool,
    ) {
        let full = tag.name().as_ref().to_owned();
        let tag_of = || Tag { at: at.clone(), name: full.clone(), is_empty };
        if is_rdf && name == "Description" && is_last(open, "RDF") && self.description.is_none() {
            // The prefix is the same in all files that we know of.
            self.is_attribute |=
                tag.attributes().flatten().any(|it| it.key.as_ref() == "dc:description");
            self.description = Some(tag_of());
        } else if is_dc && name == "description" && is_top(open) && self.texts.is_none() {
            self.texts = Some(at);
            self.inside = (!is_empty).then_some(open.len());
        } else if is_rdf && name == "Alt" && self.alt.is_none() && self.is_in_texts(open, 1) {
            self.alt_end = at.end;
            self.alt = Some(tag_of());
        } else if is_rdf && name == "li" && self.is_in_texts(open, 2) {
            let language =
                tag.attributes().flatten().find(|attribute| attribute.key.as_ref() == "xml:lang");
            let language = language.map(|it| it.value.into_owned());
            let content = at.end..at.end;
            self.entries.push(Entry {
                language: language.unwrap_or_default(),
                tag: tag_of(),
                content,
            });
        }
    }

    fn end(
        &mut self,
        (is_rdf, is_dc, name): (bool, bool, &str),
        open: &[(bool, bool, String)],
        at: Range<usize>,
    ) {
        if is_rdf && name == "RDF" {
            self.rdf_end = Some(at.start);
        } else if is_rdf && name == "Alt" && self.is_in_texts(open, 1) {
            self.alt_end = at.start;
        } else if is_rdf && name == "li" && self.is_in_texts(open, 2) {
            if let Some(entry) = self.entries.last_mut() {
                entry.content.end = at.start;
            }
        } else if is_dc && self.inside == Some(open.len()) {
            self.inside = None;
            if let Some(texts) = &mut self.texts {
                texts.end = at.end;
            }
        }
    }

    /// True if `depth` elements are open in `dc:description`, itself included.
    fn is_in_texts(&self, open: &[(bool, bool, String)], depth: usize) -> bool {
        self.inside.is_some_and(|around| open.len() == around + depth)
    }

    fn entry(&self, language: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.language.eq_ignore_ascii_case(language))
    }

    /// Replaces the texts of the languages, or adds them.
    fn edits_of_list(
        &self,
        file: &str,
        alt: &Tag,
        text: &str,
        language: Option<&str>,
    ) -> Vec<Edit> {
        let prefix = alt.name.rsplit_once(':').map_or("", |(prefix, _)| prefix);
        let colon = if prefix.is_empty() { "" } else { ":" };
        let entry = |language: &str| {
            let text = escaped(text);
            format!(
                "<{prefix}{colon}li xml:lang=\"{}\">{text}</{prefix}{colon}li>",
                escaped(language)
            )
        };
        let mut languages = vec![language.unwrap_or(DEFAULT)];
        // The default text follows that of the language, unless it is another.
        let content = |language: &str| self.entry(language).map(|it| &file[it.content.clone()]);
        let follows = content(DEFAULT).is_none()
            || language.is_some_and(|language| content(language) == content(DEFAULT));
        if language.is_some() && follows {
            languages.insert(0, DEFAULT);
        }
        if alt.is_empty {
            let entries: String = languages.iter().map(|language| entry(language)).collect();
            let name = &alt.name;
            return vec![(alt.at.clone(), format!("<{name}>{entries}</{name}>"))];
        }
        let edit = |language: &str| match self.entry(language) {
            Some(found) if found.tag.is_empty => (found.tag.at.clone(), entry(language)),
            Some(found) => (found.content.clone(), escaped(text)),
            None if language == DEFAULT => (alt.at.end..alt.at.end, entry(language)),
            None => (self.alt_end..self.alt_end, entry(language)),
        };
        languages.into_iter().map(edit).collect()
    }

    /// Adds a list to a file without one.
    fn new_list(&self, file: &str, text: &str, language: Option<&str>) -> Result<Edit, XmpError> {
        let list = list_of(text, language);
        match &self.description {
            Some(tag) if tag.is_empty => {
                let begin = file[tag.at.clone()].trim_end_matches("/>");
                Ok((tag.at.clone(), format!("{begin}>{list}</{}>", tag.name)))
            }
            Some(tag) => Ok((tag.at.end..tag.at.end, list)),
            None => {
                let end = self.rdf_end.ok_or(XmpError::NoRdf)?;
                let description = format!(
                    "<rdf:Description xmlns:rdf=\"{RDF}\" rdf:about=\"\">{list}</rdf:Description>"
                );
                Ok((end..end, description))
            }
        }
    }
}

/// True if the innermost open element is this one of RDF.
fn is_last(open: &[(bool, bool, String)], name: &str) -> bool {
    open.last().is_some_and(|(is_rdf, _, last)| *is_rdf && last == name)
}

/// True in an `rdf:Description` of the picture itself, not of something that the file describes within it.
fn is_top(open: &[(bool, bool, String)]) -> bool {
    is_last(open, "Description") && is_last(&open[..open.len() - 1], "RDF")
}

fn is(namespace: &ResolveResult<'_>, name: &str) -> bool {
    *namespace == ResolveResult::Bound(Namespace(name))
}

fn position(reader: &NsReader<&[u8]>) -> usize {
    reader.buffer_position() as usize
}

/// Returns a list with the default text, and the same text in the language. It declares its own prefixes.
fn list_of(text: &str, language: Option<&str>) -> String {
    let text = escaped(text);
    let of_language =
        |language: &str| format!("<rdf:li xml:lang=\"{}\">{text}</rdf:li>", escaped(language));
    let entries = of_language(DEFAULT) + &language.map(of_language).unwrap_or_default();
    format!(
        "<dc:description xmlns:dc=\"{DC}\" xmlns:rdf=\"{RDF}\"><rdf:Alt>{entries}</rdf:Alt></dc:description>"
    )
}

/// Escapes text. Control characters, which XML cannot hold, become spaces.
fn escaped(text: &str) -> String {
    let text: String =
        text.chars().map(|it| if it.is_control() && it != '\n' { ' ' } else { it }).collect();
    quick_xml::escape::escape(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATED: &str = "<?xpacket begin='\u{feff}' id='W5M0MpCehiHzreSzNTczkc9d'?>\r\n\
        <x:xmpmeta xmlns:x='adobe:ns:meta/'><r:RDF xmlns:r='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>\
        <r:Description r:about='' xmlns:xmp='http://ns.adobe.com/xap/1.0/' xmp:Rating='5'/></r:RDF></x:xmpmeta>\
        <!-- kept --> <?xpacket end='w'?>";

    /// The texts by language, as an independent reading of the file finds them.
    fn texts(file: &str) -> Vec<(String, String)> {
        let found = Found::read(file).unwrap();
        found
            .entries
            .iter()
            .map(|it| (it.language.clone(), file[it.content.clone()].to_owned()))
            .collect()
    }

    #[test]
    fn a_new_file_has_the_text_for_everybody_and_in_the_language() {
        let file = new("a <cat> & \"dog\"", Some("en"));
        let text = "a &lt;cat&gt; &amp; &quot;dog&quot;".to_owned();
        assert_eq!(
            texts(&file),
            [(DEFAULT.to_owned(), text.clone()), ("en".to_owned(), text.clone())]
        );
        assert_eq!(description(&file, None).unwrap(), Some(text));
        assert_eq!(description(&file, Some("de")).unwrap(), None);
    }

    #[test]
    fn other_data_is_kept_to_the_byte() {
        let once = merged(RATED, "a cat", None).unwrap();
        let list = list_of("a cat", None);
        assert_eq!(once.replace(&format!(">{list}</r:Description>"), "/>"), RATED);
        // Again: the text is replaced, whatever languages there are.
        let twice = merged(&once, "two cats", None).unwrap();
        assert_eq!(twice, once.replace("a cat", "two cats"));
        let german = merged(&twice, "zwei Katzen", Some("de")).unwrap();
        let expected = [(DEFAULT, "two cats"), ("de", "zwei Katzen")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(texts(&german), expected);
        let added = "<rdf:li xml:lang=\"de\">zwei Katzen</rdf:li>";
        assert_eq!(german.replace(added, ""), twice);
    }

    #[test]
    fn only_the_description_of_the_picture_itself_is_changed() {
        let other = format!(
            "<p:Pantry xmlns:p='p'><r:Bag><r:li><r:Description><d:description xmlns:d='{DC}'><r:Alt>\
             <r:li xml:lang='x-default'>NESTED</r:li></r:Alt></d:description></r:Description></r:li></r:Bag></p:Pantry>"
        );
        let file =
            RATED.replace("xmp:Rating='5'/>", &format!("xmp:Rating='5'>{other}</r:Description>"));
        assert_eq!(description(&file, None).unwrap(), None);
        let changed = merged(&file, "a cat", None).unwrap();
        assert_eq!(changed.replace(&list_of("a cat", None), ""), file);
        assert_eq!(description(&changed, None).unwrap().as_deref(), Some("a cat"));
        let attribute = RATED.replace("xmp:Rating='5'", "dc:description='HUMAN'");
        assert!(matches!(merged(&attribute, "a cat", None), Err(XmpError::OtherDescription)));
    }

    #[test]
    fn a_byte_order_mark_stays_in_front() {
        let marked = format!("\u{feff}{RATED}");
        let changed = merged(&marked, "a cat", None).unwrap();
        assert_eq!(changed, format!("\u{feff}{}", merged(RATED, "a cat", None).unwrap()));
    }

    #[test]
    fn the_default_text_follows_the_language_unless_it_is_another() {
        let same = merged(RATED, "one", Some("en")).unwrap();
        let changed = merged(&same, "two", Some("en")).unwrap();
        assert_eq!(description(&changed, None).unwrap().as_deref(), Some("two"));
        let other = merged(&changed, "zwei", Some("de")).unwrap();
        assert_eq!(description(&other, None).unwrap().as_deref(), Some("two"));
        assert_eq!(
            merged(RATED, "x", Some("x-default")).unwrap(),
            merged(RATED, "x", None).unwrap()
        );
    }

    #[test]
    fn empty_lists_and_files_without_a_description_are_filled() {
        let open = |inner: &str| {
            RATED.replace("xmp:Rating='5'/>", &format!("xmp:Rating='5'>{inner}</r:Description>"))
        };
        let dc =
            |inner: &str| open(&format!("<d:description xmlns:d='{DC}'>{inner}</d:description>"));
        for file in [
            open(" <xmp:Label>x</xmp:Label> "),
            dc("<r:Alt/>"),
            dc("<r:Alt></r:Alt>"),
            dc("<r:Alt><r:li xml:lang='x-default'/></r:Alt>"),
            RATED.replace("<r:Description r:about='' xmlns:xmp='http://ns.adobe.com/xap/1.0/' xmp:Rating='5'/>", ""),
        ] {
            let merged = merged(&file, "a cat", None).unwrap();
            assert_eq!(texts(&merged), [(DEFAULT.to_owned(), "a cat".to_owned())], "{merged}");
        }
        assert!(matches!(merged(&dc("a text"), "a cat", None), Err(XmpError::OtherDescription)));
        assert!(matches!(merged("<a/>", "a cat", None), Err(XmpError::NoRdf)));
        assert!(matches!(merged("<a>", "</", None), Err(XmpError::NoRdf)));
        assert!(matches!(merged("<a></b>", "a cat", None), Err(XmpError::Xml(_))));
    }
}
