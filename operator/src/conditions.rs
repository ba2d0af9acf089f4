//! Conditions of both kinds: always present, their times kept where nothing changed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Longest message of a condition.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Whether something is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// It is.
    True,
    /// It is not.
    False,
    /// Nobody knows yet.
    Unknown,
}

/// What one condition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Type of the condition.
    pub kind: &'static str,
    /// Whether it holds.
    pub is: Is,
    /// One word why.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// The conditions as they are written: times of transition stay where the status did.
pub fn written(
    said: Vec<Said>,
    before: &[Condition],
    generation: i64,
    now: Time,
) -> Vec<Condition> {
    let write = |said: Said| {
        let Said {
            kind,
            is,
            reason,
            message,
        } = said;
        let status = match is {
            Is::True => "True",
            Is::False => "False",
            Is::Unknown => "Unknown",
        };
        let same = before
            .iter()
            .find(|before| before.type_ == kind && before.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)].to_owned(),
            observed_generation: Some(generation),
            last_transition_time: same
                .map_or(now.clone(), |same| same.last_transition_time.clone()),
        }
    };
    said.into_iter().map(write).collect()
}

/// The condition of that type.
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_while_its_status_stays() {
        let at = |seconds| Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap());
        let said = |is, reason| Said {
            kind: "Ready",
            is,
            reason,
            message: "é".repeat(1_000),
        };
        let first = written(vec![said(Is::False, "Starting")], &[], 1, at(1));
        assert!(first[0].message.len() <= MESSAGE_BYTES_MAX);
        let second = written(vec![said(Is::False, "Waiting")], &first, 2, at(2));
        assert_eq!(second[0].last_transition_time, at(1));
        assert_eq!(second[0].observed_generation, Some(2));
        let third = written(vec![said(Is::True, "Running")], &second, 2, at(3));
        assert_eq!(find(&third, "Ready").unwrap().last_transition_time, at(3));
    }
}
