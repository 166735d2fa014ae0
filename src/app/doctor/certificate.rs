//! Reads from when to when a TLS certificate is valid: the field `validity` of RFC 5280, section 4.1. Reads no other
//! field and verifies nothing.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// ASN.1 tags in DER.
const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// Tag of the version, `[0]`, which is optional.
const VERSION: u8 = 0xa0;

/// From when to when a certificate is valid, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) from: i64,
    pub(super) until: i64,
}

/// The TLS certificate of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Certificate {
    /// The settings name none.
    Absent,
    /// Its validity cannot be read.
    Unreadable,
    Read(Validity),
}

impl Certificate {
    /// Reads the validity of the first certificate in a PEM file.
    pub(super) fn of_pem(pem: &[u8]) -> Self {
        validity(pem).map_or(Self::Unreadable, Self::Read)
    }
}

/// Returns the validity of the first certificate in a PEM file; `None` if there is none or it is malformed.
fn validity(pem: &[u8]) -> Option<Validity> {
    let certificate = CertificateDer::from_pem_slice(pem).ok()?;
    let (certificate, _) = sequence(&certificate)?;
    let (mut fields, _) = sequence(certificate)?;
    if fields.first() == Some(&VERSION) {
        fields = value(fields)?.2;
    }
    // Serial number, algorithm of the signature, issuer.
    for _ in 0..3 {
        fields = value(fields)?.2;
    }
    let (times, _) = sequence(fields)?;
    let (tag, from, rest) = value(times)?;
    let from = time(tag, from)?;
    let (tag, until, _) = value(rest)?;
    Some(Validity { from, until: time(tag, until)? })
}

/// Splits bytes into the content of their first value, which must be a sequence, and the rest.
fn sequence(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = value(bytes)?;
    (tag == SEQUENCE).then_some((content, rest))
}

/// Splits bytes into the tag and content of their first value, and the rest.
fn value(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    // A length below 128 is one byte; else the first byte says how many bytes of length follow.
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        if digits.len() > 4 {
            return None;
        }
        (digits.iter().fold(0, |length, &digit| (length << 8) | usize::from(digit)), rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// Parses `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`.
fn time(tag: u8, text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |text: &str| text.parse::<i64>().ok();
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (number(year)?, rest)
        }
        _ => return None,
    };
    if rest.len() != 10 {
        return None;
    }
    let pair = |index: usize| number(&rest[2 * index..2 * index + 2]);
    let days = days_since_1970(year, pair(0)?, pair(1)?);
    Some(((days * 24 + pair(2)?) * 60 + pair(3)?) * 60 + pair(4)?)
}

/// Counts the days from 1970-01-01 to a date of the Gregorian calendar: `days_from_civil` in
/// <https://howardhinnant.github.io/date_algorithms.html>. Years begin in March there, so that the leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_1970() {
        assert_eq!(days_since_1970(1970, 1, 1), 0);
        assert_eq!(days_since_1970(2000, 2, 29), 11_016);
        assert_eq!(days_since_1970(2000, 3, 1), 11_017);
        assert_eq!(days_since_1970(1969, 12, 31), -1);
    }

    #[test]
    fn times_are_read_in_both_forms() {
        // `date -u -d 2026-12-01T10:20:30Z +%s`
        assert_eq!(time(UTC_TIME, b"261201102030Z"), Some(1_796_120_430));
        assert_eq!(time(GENERALIZED_TIME, b"20261201102030Z"), Some(1_796_120_430));
        assert_eq!(time(UTC_TIME, b"700101000000Z"), Some(0));
        for bad in [&b"261201102030"[..], b"2612011020Z", b"26120110203xZ", b"Z", b"\xff"] {
            assert_eq!(time(UTC_TIME, bad), None);
        }
    }

    #[test]
    fn the_validity_of_a_certificate_is_read() {
        let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(2026, 1, 2);
        parameters.not_after = rcgen::date_time_ymd(2051, 3, 4);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = parameters.self_signed(&key).unwrap().pem();
        let day = |year, month, day| days_since_1970(year, month, day) * 86_400;
        let expected = Validity { from: day(2026, 1, 2), until: day(2051, 3, 4) };
        assert_eq!(validity(pem.as_bytes()), Some(expected));
        assert_eq!(validity(b"no certificate"), None);
    }

    #[test]
    fn truncated_values_are_no_values() {
        assert_eq!(value(&[SEQUENCE, 2, 1]), None);
        assert_eq!(value(&[SEQUENCE, 0x82, 1]), None);
        assert_eq!(value(&[SEQUENCE, 0x85, 1, 1, 1, 1, 1]), None);
        assert_eq!(value(&[2, 1, 7, 9]), Some((2, &[7][..], &[9][..])));
    }
}
