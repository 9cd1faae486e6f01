//! How much is told of a text that others supply: nodes, admission policies, the spec. Pure.

/// Bytes of one text in the status or in an event, for which Kubernetes has the same bound. All texts of a status together
/// are then far below what the API server takes for one object.
pub const TEXT_BYTES: usize = 1_024;

const CUT: &str = "…";

/// The text, or as much of it as is told; cut between two characters. It is shown on terminals, so nothing in it steers one.
pub fn brief(text: &str) -> String {
    let shown = |text: &str| text.replace(|c: char| c.is_control() && c != '\n', " ");
    match text.len() {
        0..=TEXT_BYTES => shown(text),
        _ => shown(&text[..text.floor_char_boundary(TEXT_BYTES - CUT.len())]) + CUT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_fits_whatever_its_characters_are() {
        let short = "--max-txn-ops=x is not a number";
        assert_eq!(brief(short), short);
        let whole = "a".repeat(TEXT_BYTES);
        assert_eq!(brief(&whole), whole);
        assert_eq!(brief("0.1\u{1b}[2J\r\u{9b}1mü\n2"), "0.1 [2J  1mü\n2");
        for character in ["a", "ü", "€", "🦀"] {
            let cut = brief(&character.repeat(600_000));
            assert!((TEXT_BYTES - 4..=TEXT_BYTES).contains(&cut.len()), "{} bytes of {character}", cut.len());
            assert!(cut.ends_with(CUT) && cut.starts_with(character));
        }
    }
}
