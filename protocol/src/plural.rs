//! Nouns beside their counts, for what people read.

/// The noun as it stands beside this count: `shard` beside 1, `shards` beside all others.
pub fn plural(count: u64, noun: &str) -> String {
    match count {
        1 => noun.to_owned(),
        _ => format!("{noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alone_is_no_plural() {
        let told = [0, 1, 2].map(|count| plural(count, "shard"));
        assert_eq!(told, ["shards", "shard", "shards"]);
    }
}
