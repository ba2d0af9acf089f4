//! Which fault a call meets. Pure.

use crate::answer::Asked;
use crate::options::Faults;

/// What becomes of a call that is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is answered.
    Answered,
    /// 503.
    Overloaded,
    /// 500.
    Failed,
    /// Answered with half of what should be said.
    Malformed,
    /// Answered without its last row.
    Short,
    /// Never answered.
    Silent,
    /// Its stream ends in its middle.
    Cut,
    /// Its stream stops in its middle.
    Stalled,
    /// The model refuses.
    Refused,
    /// 400: the prompt is too long.
    TooLong,
}

impl Faults {
    /// The fate of the `number`th call that is let in, counted from 1.
    pub fn fate(&self, number: u64, asked: &Asked) -> Fate {
        let Self {
            overloaded_every,
            overloaded_retry_after_ms: _,
            failed_every,
            failed_retry_after_ms: _,
            malformed_every,
            short_every,
            silent_every,
            cut_every,
            stalled_every,
            failed_text,
            refused_text,
            context_tokens_max,
        } = self;
        if context_tokens_max.is_some_and(|max| asked.prompt_tokens > max) {
            return Fate::TooLong;
        }
        let holds = |text: &String| asked.rows.iter().any(|row| row.contains(text.as_str()));
        if refused_text.as_ref().is_some_and(holds) {
            return Fate::Refused;
        }
        if failed_text.as_ref().is_some_and(holds) {
            return Fate::Failed;
        }
        let is_due = |every: &Option<u64>| every.is_some_and(|n| n > 0 && number.is_multiple_of(n));
        let faults = [
            (overloaded_every, Fate::Overloaded),
            (failed_every, Fate::Failed),
            (malformed_every, Fate::Malformed),
            (short_every, Fate::Short),
            (silent_every, Fate::Silent),
            (cut_every, Fate::Cut),
            (stalled_every, Fate::Stalled),
        ];
        let mut faults = faults.into_iter();
        faults
            .find(|(every, _)| is_due(every))
            .map_or(Fate::Answered, |(_, fate)| fate)
    }

    /// Real milliseconds that the answer of such a call asks to wait.
    pub fn retry_after_ms(&self, fate: Fate) -> Option<u64> {
        match fate {
            Fate::Overloaded => self.overloaded_retry_after_ms,
            Fate::Failed => self.failed_retry_after_ms,
            _ => None,
        }
    }
}
