//! Indexes of shards as a Job of Kubernetes writes them: `1,3-5,7`.

use crate::plan::ShardIndex;

/// Most bytes of such a text. What does not fit is left out, which three dots at the end say.
pub const INDEXES_BYTES_MAX: usize = 1024;

/// What the end of a text says where something is left out.
const MORE: &str = ",...";

/// Indexes, taken in their order and written as ranges. Takes no more memory than its text.
#[derive(Debug, Default)]
pub struct Indexes {
    text: String,
    /// First and last index of the series that is not written yet.
    series: Option<(ShardIndex, ShardIndex)>,
    is_full: bool,
}

impl Indexes {
    /// Takes the next index, which is greater than those before it.
    pub fn push(&mut self, index: ShardIndex) {
        match &mut self.series {
            Some((_, last)) if last.checked_add(1) == Some(index) => *last = index,
            _ => {
                self.write_series();
                self.series = Some((index, index));
            }
        }
    }

    /// Takes no further index: there are more than anybody may want to read.
    pub fn cut(&mut self) {
        self.write_series();
        self.is_full = true;
    }

    /// Whether no further index would be written.
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// The text; nothing if there is no index.
    pub fn into_text(mut self) -> Option<String> {
        self.write_series();
        if self.is_full {
            self.text.push_str(MORE);
        }
        (!self.text.is_empty()).then_some(self.text)
    }

    fn write_series(&mut self) {
        let Some((first, last)) = self.series.take() else {
            return;
        };
        let written = match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        };
        let comma = if self.text.is_empty() { "" } else { "," };
        let bytes = self.text.len() + comma.len() + written.len() + MORE.len();
        self.is_full |= bytes > INDEXES_BYTES_MAX;
        if !self.is_full {
            self.text.push_str(comma);
            self.text.push_str(&written);
        }
    }
}

impl FromIterator<ShardIndex> for Indexes {
    fn from_iter<I: IntoIterator<Item = ShardIndex>>(indexes: I) -> Self {
        let mut all = Self::default();
        indexes.into_iter().for_each(|index| all.push(index));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_written_as_a_job_of_kubernetes_writes_them() {
        let check = |indexes: &[ShardIndex], expected: Option<&str>| {
            let written = indexes.iter().copied().collect::<Indexes>().into_text();
            assert_eq!(written.as_deref(), expected);
        };
        check(&[], None);
        check(&[0], Some("0"));
        check(&[1, 3, 4, 5, 7], Some("1,3-5,7"));
        check(&[1, 2, 4, 5], Some("1,2,4,5"));
        check(
            &[u32::MAX - 2, u32::MAX - 1, u32::MAX],
            Some("4294967293-4294967295"),
        );
    }

    #[test]
    fn what_does_not_fit_is_left_out_between_two_indexes() {
        let every_second = (0..).step_by(2);
        let mut indexes = Indexes::default();
        let mut taken = 0;
        for index in every_second {
            if indexes.is_full() {
                break;
            }
            indexes.push(index);
            taken += 1;
        }
        assert!(taken < INDEXES_BYTES_MAX, "whoever pushes learns of it");
        let text = indexes.into_text().unwrap();
        assert!(text.len() <= INDEXES_BYTES_MAX, "{}", text.len());
        let named: Vec<u32> = (text.strip_suffix(MORE).unwrap().split(','))
            .map(|index| index.parse().unwrap())
            .collect();
        assert!(named.iter().copied().eq((0..).step_by(2).take(named.len())));
    }
}
