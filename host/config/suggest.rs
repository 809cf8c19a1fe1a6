//! Finds the word that was meant.

/// The candidate nearest to `word`, where one is near enough to be worth proposing.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            (strsim::damerau_levenshtein(&lower, candidate), strsim::jaro_winkler(&lower, candidate), candidate)
        })
        // Two slips in a short word, a third of a long one; or one is the beginning of the other (`secret`, `secret_env`).
        .filter(|(slips, _, candidate)| {
            *slips <= (candidate.len() / 3).clamp(1, 4)
                || (lower.len().min(candidate.len()) >= 3
                    && (candidate.starts_with(&lower) || lower.starts_with(candidate)))
        })
        .max_by(|a, b| b.0.cmp(&a.0).then(a.1.total_cmp(&b.1)))
        .map(|(_, _, candidate)| candidate)
}

/// `; did you mean 'X'?`, or `; known: a, b` where nothing is near and something is known.
pub fn hint<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(near) = nearest(word, candidates.clone()) {
        return format!("; did you mean '{near}'?");
    }
    let known: Vec<&str> = candidates.into_iter().collect();
    if known.is_empty() { String::new() } else { format!("; known: {}", known.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proposes_what_is_near_and_nothing_else() {
        let words = ["confirmations", "url", "secret_env", "webhook"];
        for (wrong, right) in [
            ("confimations", Some("confirmations")),
            ("ulr", Some("url")),
            ("secret", Some("secret_env")),
            ("WebHook", Some("webhook")),
            ("banana", None),
            ("x", None),
        ] {
            assert_eq!(nearest(wrong, words), right, "{wrong}");
        }
        assert_eq!(hint("banana", ["a", "b"]), "; known: a, b");
        assert_eq!(hint("banana", []), "");
    }
}
