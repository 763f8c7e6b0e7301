//! When a wait has lasted too long, and who is to blame. Pure: time comes in as an argument.

use std::time::Duration;

use scpeft_config::WatchdogSection;
use scpeft_protocol::heartbeat::Section;

use super::board::State;

/// How long each section may go without progress; `None` for as long as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadlines([Option<Duration>; Section::ALL.len()]);

impl Deadlines {
    pub(super) fn of(config: &WatchdogSection) -> Self {
        Self(std::array::from_fn(|index| {
            let seconds = match Section::ALL[index] {
                Section::Setup => config.setup,
                Section::Data => config.data,
                Section::Forward => config.forward,
                Section::Collective => config.collective,
                Section::Optimizer => config.optimizer,
                Section::Eval => config.eval,
                Section::Checkpoint => config.checkpoint,
                Section::Done => 0,
            };
            (seconds > 0).then(|| Duration::from_secs(seconds))
        }))
    }

    fn get(&self, section: Section) -> Option<Duration> {
        self.0[section as usize]
    }

    /// What a rank that waits in a collective grants a rank in `section`: its own deadline, or that
    /// of a section in which a rank may work alone for long.
    fn patience(&self, section: Section) -> Option<Duration> {
        let wait = self.get(Section::Collective)?;
        match section {
            Section::Setup | Section::Eval | Section::Checkpoint => {
                self.get(section).map(|own| own.max(wait))
            }
            _ => Some(wait),
        }
    }
}

/// A deadline that has passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expired {
    /// The section of the rank that noticed.
    pub(super) section: Section,
    /// How long it has made no progress.
    pub(super) waited: Duration,
    /// How long it might have.
    pub(super) deadline: Duration,
    /// Ranks of this host that have not reached the collective, furthest behind first.
    pub(super) behind: Vec<State>,
}

impl Expired {
    /// Blames the ranks of this host that were stopped inside a collective which all have reached.
    pub(super) fn or_stopped(
        mut self,
        others: &[State],
        is_stopped: impl Fn(&State) -> bool,
    ) -> Self {
        if self.section == Section::Collective && self.behind.is_empty() {
            self.behind
                .extend(others.iter().filter(|other| is_stopped(other)));
        }
        self
    }
}

/// Whether `own` has waited too long at `now`. Nothing before `not_before` counts: the process may
/// have been suspended as a whole.
pub(super) fn judge(
    own: &State,
    outer: Section,
    others: &[State],
    deadlines: &Deadlines,
    now: u64,
    not_before: u64,
) -> Option<Expired> {
    let idle = |state: &State| Duration::from_nanos(now.saturating_sub(state.beat.max(not_before)));
    let waits = own.section == Section::Collective;
    // A wait during set-up is for ranks that set up, whether or not this host can see them.
    let deadline = match (waits, outer) {
        (true, Section::Setup) => deadlines.patience(Section::Setup)?,
        _ => deadlines.get(own.section)?,
    };
    let waited = idle(own);
    if waited <= deadline {
        return None;
    }
    let mut behind: Vec<State> = Vec::new();
    if waits {
        behind.extend(others.iter().filter(|other| other.entered < own.entered));
        let is_working = |other: &State| {
            deadlines
                .patience(other.section)
                .is_none_or(|patience| idle(other) <= patience)
        };
        if behind.iter().any(is_working) {
            return None;
        }
        behind.sort_by_key(|other| (other.entered, other.beat));
    }
    Some(Expired {
        section: own.section,
        waited,
        deadline,
        behind,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn state(rank: usize, section: Section, beat: u64, entered: u64) -> State {
        State {
            rank,
            pid: 1,
            section,
            step: 0,
            since: beat * SECOND,
            beat: beat * SECOND,
            entered,
        }
    }

    fn judged(own: State, others: &[State], now: u64) -> Option<Expired> {
        let deadlines = Deadlines::of(&WatchdogSection::default());
        judge(&own, Section::Forward, others, &deadlines, now * SECOND, 0)
    }

    #[test]
    fn a_rank_that_was_stopped_inside_the_collective_is_to_blame() {
        let own = state(0, Section::Collective, 10, 5);
        let others = [1, 2].map(|rank| state(rank, Section::Collective, 10, 5));
        let expired = judged(own, &others, 700).unwrap();
        assert_eq!(expired.behind, []);
        let expired = expired.or_stopped(&others, |other| other.rank == 2);
        assert_eq!(expired.behind, [others[1]]);
        // Whoever has not arrived comes first.
        let late = [state(1, Section::Forward, 10, 4), others[1]];
        let expired = judged(own, &late, 700).unwrap();
        assert_eq!(expired.or_stopped(&late, |_| true).behind, [late[0]]);
    }

    #[test]
    fn each_section_has_a_deadline_of_its_own() {
        for (section, deadline) in [
            (Section::Setup, 900),
            (Section::Data, 300),
            (Section::Forward, 600),
            (Section::Collective, 600),
            (Section::Optimizer, 120),
            (Section::Eval, 1800),
            (Section::Checkpoint, 600),
        ] {
            let own = state(0, section, 10, 5);
            assert_eq!(judged(own, &[], 10 + deadline), None, "{section:?}");
            let expired = judged(own, &[], 11 + deadline).unwrap();
            assert_eq!(expired.deadline.as_secs(), deadline, "{section:?}");
        }
    }

    #[test]
    fn the_rank_that_has_not_reached_the_collective_is_behind() {
        let own = state(0, Section::Collective, 0, 9);
        let with = state(1, Section::Collective, 0, 9);
        let late = state(2, Section::Forward, 1, 8);
        let later = state(3, Section::Data, 0, 7);
        let expired = judged(own, &[with, late, later], 602).unwrap();
        assert_eq!(expired.behind, [later, late]);
    }

    #[test]
    fn nobody_is_blamed_for_waiting_for_a_rank_that_makes_progress() {
        let own = state(0, Section::Collective, 0, 9);
        let slow = state(1, Section::Forward, 500, 8);
        assert_eq!(judged(own, &[slow], 700), None);
        assert!(judged(own, &[slow], 1101).is_some());
        let evaluates = state(1, Section::Eval, 0, 8);
        assert_eq!(judged(own, &[evaluates], 1700), None);
        assert!(judged(own, &[evaluates], 1801).is_some());
    }

    #[test]
    fn a_wait_during_set_up_has_the_deadline_of_set_up() {
        let deadlines = Deadlines::of(&WatchdogSection::default());
        let own = state(0, Section::Collective, 0, 2);
        let at = |now: u64| judge(&own, Section::Setup, &[], &deadlines, now * SECOND, 0);
        assert_eq!(at(900), None);
        assert_eq!(at(901).unwrap().deadline.as_secs(), 900);
    }

    #[test]
    fn a_suspended_process_starts_its_clock_anew_and_0_turns_a_deadline_off() {
        let deadlines = Deadlines::of(&WatchdogSection {
            eval: 0,
            ..WatchdogSection::default()
        });
        let at = |section, now: u64, resumed: u64| {
            let own = state(0, section, 0, 0);
            judge(
                &own,
                section,
                &[],
                &deadlines,
                now * SECOND,
                resumed * SECOND,
            )
            .is_some()
        };
        assert!(at(Section::Data, 9000, 8000) && !at(Section::Data, 9000, 8800));
        assert!(!at(Section::Eval, 1_000_000, 0));
    }
}
