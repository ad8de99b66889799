//! Whether what is said of a machine's power can be true, by what the appliance itself heard. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::State;

/// A machine's last frames may be on their way while it is switched off.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// What was heard longer ago may be of a boot that is over.
const LATELY: Duration = Duration::from_secs(10);

/// What was said of a machine's power so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct History {
    /// When we switched it on last.
    switched_on: Option<Timestamp>,
    /// Since when it is said to be off, without interruption.
    off_since: Option<Timestamp>,
}

impl History {
    /// What is said now; `switched`, because we just had it so.
    pub(super) fn say(&mut self, state: State, switched: bool, now: Timestamp) {
        match state {
            State::Off => *self = Self { switched_on: None, off_since: self.off_since.or(Some(now)) },
            State::On | State::Unknown => {
                let switched_on = if switched { Some(now) } else { self.switched_on };
                *self = Self { switched_on, off_since: None };
            }
        }
    }

    /// Why what is said can't be true. `heard`: when something came from the machine last. Of one that is switched on,
    /// something is heard within `heard_within`.
    pub(super) fn contradiction(
        &self,
        state: State,
        heard: Option<Timestamp>,
        now: Timestamp,
        heard_within: Duration,
    ) -> Option<String> {
        let ago = |time: Timestamp| Duration::try_from(now.duration_since(time)).unwrap_or_default();
        match state {
            State::Off => {
                let (off, heard) = (self.off_since?, heard?);
                let since = Duration::try_from(heard.duration_since(off)).unwrap_or_default();
                (since > AFTERWARDS && ago(heard) < LATELY).then(|| {
                    format!(
                        "something came from the machine {} s ago, while it was said to be off",
                        ago(heard).as_secs()
                    )
                })
            }
            State::On => {
                let on = self.switched_on?;
                let silent = heard.is_none_or(|heard| heard < on) && ago(on) > heard_within;
                silent.then(|| {
                    format!(
                        "nothing was heard of the machine since it was switched on {} s ago: no power, no link, or \
                         another boot order",
                        ago(on).as_secs()
                    )
                })
            }
            State::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_told() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let within = Duration::from_secs(600);
        let now = at(10_000);
        let mut off = History::default();
        off.say(State::Off, true, at(9_990));
        off.say(State::Off, false, now);
        let contradiction = |heard: i64| off.contradiction(State::Off, Some(at(heard)), now, within);
        assert_eq!(contradiction(9_989), None);
        assert_eq!(contradiction(9_991), None, "its last frame");
        let words = contradiction(9_997).unwrap();
        assert!(words.contains("came from the machine 3 s ago, while it was said to be off"), "{words}");
        assert_eq!(
            History::default().contradiction(State::Off, Some(now), now, within),
            None,
            "the first time"
        );

        let mut on = History::default();
        on.say(State::On, false, at(1));
        assert_eq!(on.contradiction(State::On, None, now, within), None, "somebody else switched it on");
        on.say(State::On, true, at(9_500));
        assert_eq!(on.contradiction(State::On, None, now, within), None, "it may still count its memory");
        on.say(State::On, true, at(9_000));
        on.say(State::On, false, at(9_500));
        let words = on.contradiction(State::On, Some(at(8_000)), now, within).unwrap();
        assert!(
            words.contains("nothing was heard of the machine since it was switched on 1000 s ago"),
            "{words}"
        );
        assert_eq!(on.contradiction(State::On, Some(at(9_100)), now, within), None);
        assert_eq!(on.contradiction(State::Unknown, None, now, within), None);
    }
}
