// SPDX-License-Identifier: GPL-2.0
//! [`Queue`]: the writers and discards that wait for space, in the order in which they came.
//!
//! A *ticket* is one of them. Space that appears is granted to the tickets of each class in order. A ticket that was
//! granted space keeps its place until its record is placed: if something else takes the space before that, it waits
//! again, before all that came later.
//!
//! The queue has room for a bounded number of tickets, because a write must not allocate memory. Those who come when it
//! has none for their class stand in a *line* in front of it, and enter it in the order in which they came.

use super::class::{for_metadata, SpaceClass};
use super::Space;
use crate::engine::{Error, Result};
use crate::platform::mem::Vec;

/// Most tickets of a class in the queue: as many as the driver serves writes at a time.
const TICKETS: usize = 32;

/// What became of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It waits.
    Waiting,
    /// Its record may be placed, under this class.
    Granted(SpaceClass),
    /// There is no space for it, or the search for space failed with this error.
    Refused(Error),
}

/// One that waits for space.
struct Ticket {
    number: u64,
    /// The class it asked under.
    class: SpaceClass,
    /// Bytes of its record.
    need: u32,
    answer: Answer,
}

/// The tickets, in order of their numbers.
pub(super) struct Queue {
    tickets: Vec<Ticket>,
    /// Number of the next ticket.
    next: u64,
    /// Those of each class who have a ticket, but are not in the queue yet.
    lines: [Line; SpaceClass::COUNT],
}

/// Those who wait for room in the queue. The numbers begin anew after the largest one.
#[derive(Clone, Copy, Default)]
struct Line {
    /// Tickets that were taken.
    came: u32,
    /// Tickets that have entered the queue.
    entered: u32,
}

/// A ticket, and its place in the line of its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Number of the ticket.
    pub(crate) ticket: u64,
    /// Tickets of its class that were taken before it.
    before: u32,
}

impl Queue {
    /// An empty queue.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            tickets: Vec::with_capacity(TICKETS * SpaceClass::COUNT)?,
            next: 0,
            lines: [Line::default(); SpaceClass::COUNT],
        })
    }

    fn position(&self, number: u64) -> Option<usize> {
        self.tickets.iter().position(|t| t.number == number)
    }
}

/// The space that tickets are granted from.
#[derive(Clone, Copy)]
pub(crate) struct Supply {
    /// Bytes left in the current segment of the log.
    pub(crate) room: u64,
    /// Bytes that records can take of a segment.
    pub(crate) usable: u64,
    /// Segments that two checkpoints need.
    pub(crate) checkpoints: u64,
    /// What users append counts as metadata, see [`SpaceClass::effective`].
    pub(crate) early: bool,
    /// The reserve counts for nothing: for a sabotage only.
    pub(crate) spent: bool,
    /// The last tickets are served first: for a sabotage only.
    pub(crate) unfair: bool,
}

/// The verdict about tickets that waited when a round of reclaim began, and that it found nothing for.
#[derive(Clone, Copy)]
pub(crate) struct Verdict {
    /// Tickets with lower numbers waited when the round began.
    pub(crate) asked: u64,
    /// What they are told.
    pub(crate) error: Error,
}

/// The queue of those who wait for space.
impl Space {
    /// True if tickets of `class` wait, or have not used yet what they were granted: a later write or discard of that
    /// class must not overtake them.
    pub(crate) fn queued(&self, class: SpaceClass) -> bool {
        let line = &self.queue.lines[class as usize];
        line.came != line.entered || self.in_queue(class) > 0
    }

    /// Number of tickets of `class` in the queue.
    fn in_queue(&self, class: SpaceClass) -> usize {
        let tickets = self.queue.tickets.iter();
        tickets.filter(|t| t.class == class).count()
    }

    /// Takes a ticket, which has to [`enter`](Self::enter) the queue.
    pub(crate) fn line_up(&mut self, class: SpaceClass) -> Place {
        let ticket = self.queue.next;
        self.queue.next += 1;
        let line = &mut self.queue.lines[class as usize];
        let before = line.came;
        line.came = before.wrapping_add(1);
        Place { ticket, before }
    }

    /// Enters the queue with a ticket for a record of `need` bytes. False if it is not its turn yet, or there is no room.
    ///
    /// # Errors
    ///
    /// None, because the memory is there.
    pub(crate) fn enter(&mut self, class: SpaceClass, need: u32, place: Place) -> Result<bool> {
        let room = self.in_queue(class) < TICKETS;
        let line = &mut self.queue.lines[class as usize];
        if !room || line.entered != place.before {
            return Ok(false);
        }
        line.entered = line.entered.wrapping_add(1);
        let number = place.ticket;
        let tickets = &mut self.queue.tickets;
        let at = tickets.partition_point(|t| t.number < number);
        let answer = Answer::Waiting;
        tickets.insert(
            at,
            Ticket {
                number,
                class,
                need,
                answer,
            },
        )?;
        Ok(true)
    }

    /// The ticket does not wait any more: its record is placed, or it was refused. True if others wait for its place in the
    /// queue, and must be woken.
    pub(crate) fn dequeue(&mut self, number: u64) -> bool {
        if let Some(at) = self.queue.position(number) {
            self.queue.tickets.remove(at);
        }
        self.queue
            .lines
            .iter()
            .any(|line| line.came != line.entered)
    }

    /// The space that was granted to a ticket is gone: it waits again, and so do those of its class behind it.
    pub(crate) fn ungrant(&mut self, number: u64) {
        let Some(at) = self.queue.position(number) else {
            return;
        };
        let class = self.queue.tickets[at].class;
        for ticket in self.queue.tickets.iter_mut().skip(at) {
            if ticket.class == class && matches!(ticket.answer, Answer::Granted(_)) {
                ticket.answer = Answer::Waiting;
            }
        }
    }

    /// What became of a ticket.
    pub(crate) fn answer(&self, number: u64) -> Answer {
        let ticket = self.queue.tickets.iter().find(|t| t.number == number);
        ticket.map_or(Answer::Waiting, |ticket| ticket.answer)
    }

    /// True if the ticket is the first one of its class that waits.
    pub(crate) fn is_first(&self, number: u64) -> bool {
        let tickets = || self.queue.tickets.iter();
        let class = tickets().find(|t| t.number == number).map(|t| t.class);
        tickets()
            .find(|t| Some(t.class) == class && t.answer == Answer::Waiting)
            .is_some_and(|first| first.number == number)
    }

    /// Number of the next ticket: those that wait now have lower numbers.
    pub(crate) fn next_ticket(&self) -> u64 {
        self.queue.next
    }

    /// True if a ticket below `asked` waits.
    pub(crate) fn waits(&self, asked: u64) -> bool {
        let mut tickets = self.queue.tickets.iter();
        tickets.any(|t| t.number < asked && t.answer == Answer::Waiting)
    }

    /// True if a discard waits.
    pub(crate) fn discard_waits(&self) -> bool {
        let mut tickets = self.queue.tickets.iter();
        tickets.any(|t| t.class == SpaceClass::Discard && t.answer == Answer::Waiting)
    }

    /// Segments that the tickets need together, when records can take `usable` bytes of each.
    pub(crate) fn wanted(&self, usable: u64) -> u64 {
        let bytes: u64 = self.queue.tickets.iter().map(|t| u64::from(t.need)).sum();
        bytes.div_ceil(usable)
    }

    /// Grants what there is to the tickets in order, and gives the `verdict` on the rest, if there is one. A ticket that
    /// finds nothing holds up the later ones of its class, unless it is refused. `heard` is called with
    /// each ticket that got an answer. True if one did.
    pub(crate) fn serve(
        &mut self,
        supply: &Supply,
        verdict: Option<Verdict>,
        heard: fn(u64),
    ) -> bool {
        let mut stock = Stock {
            reserved: self.reserve.len() as u64,
            room: supply.room,
            supply,
            metadata: for_metadata(self.size),
        };
        let mut held_up = [false; SpaceClass::COUNT];
        let mut answered = false;
        let count = self.queue.tickets.len();
        for at in 0..count {
            let at = if supply.unfair { count - 1 - at } else { at };
            let ticket = &mut self.queue.tickets[at];
            if let Answer::Granted(class) = ticket.answer {
                // It has not come to use it yet.
                stock.take(class, ticket.need);
                continue;
            }
            if ticket.answer != Answer::Waiting || held_up[ticket.class as usize] {
                continue;
            }
            let final_for = verdict.filter(|verdict| ticket.number < verdict.asked);
            let class = ticket.class.effective(supply.early);
            let last_resort = match final_for.is_some() && supply.early && class.is_write() {
                true => SpaceClass::PostMountWrite,
                false => class,
            };
            ticket.answer = if stock.take(class, ticket.need) {
                Answer::Granted(class)
            } else if stock.take(last_resort, ticket.need) {
                Answer::Granted(last_resort)
            } else if let Some(verdict) = final_for {
                self.refused |= verdict.error == Error::NoSpace;
                Answer::Refused(verdict.error)
            } else {
                held_up[ticket.class as usize] = true;
                continue;
            };
            answered = true;
            heard(ticket.number);
        }
        answered
    }
}

/// What is left of a [`Supply`] while it is granted.
struct Stock<'a> {
    reserved: u64,
    room: u64,
    supply: &'a Supply,
    metadata: u64,
}

impl Stock<'_> {
    /// Takes space for a record of `need` bytes. False if `class` may not.
    fn take(&mut self, class: SpaceClass, need: u32) -> bool {
        let leaves = match self.supply.spent {
            true => 0,
            false => class.leaves(self.supply.checkpoints, self.metadata),
        };
        let need = u64::from(need);
        let fits = need <= self.room;
        if self.reserved < leaves + u64::from(!fits) {
            return false;
        }
        if !fits {
            self.reserved -= 1;
            self.room = self.supply.usable;
        }
        self.room = self.room.saturating_sub(need);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::format::{DeviceSize, Layout};
    use crate::engine::space::{Allocator, Backing};
    use crate::platform::mem::Box;

    const SUPPLY: Supply = Supply {
        room: 0,
        usable: 1000,
        checkpoints: 1,
        early: false,
        spent: false,
        unfair: false,
    };

    fn space(reserve: u64) -> Box<Space> {
        let layout = Layout {
            record_size: 4096,
            segment_size: 256 << 10,
            uuid: [0; 16],
        };
        let size = DeviceSize::from_blocks(1000);
        let mut space = Space::new(Allocator::new(0, 0), layout, size).unwrap();
        (0..reserve).for_each(|index| space.add_to_reserve(index, Backing::Ahead).unwrap());
        space
    }

    fn answers(space: &Space, numbers: &[u64]) -> Vec<Answer> {
        let mut answers = Vec::new();
        for &number in numbers {
            answers.push(space.answer(number)).unwrap();
        }
        answers
    }

    use super::SpaceClass::{Discard, Metadata, PostMountWrite, User};
    use Answer::{Granted, Refused, Waiting};

    impl Space {
        /// Takes a ticket and enters the queue.
        fn enqueue(&mut self, class: SpaceClass, need: u32) -> Result<u64> {
            let place = self.line_up(class);
            assert_eq!(self.enter(class, need, place), Ok(true));
            Ok(place.ticket)
        }
    }

    /// More tickets than the queue has room for are served in the order in which they were taken.
    #[test]
    fn a_line_keeps_its_order() {
        const COUNT: usize = 3 * TICKETS;
        let mut space = space(0);
        let mut places = [User, Metadata].map(|class| {
            let places: std::vec::Vec<Place> = (0..COUNT).map(|_| space.line_up(class)).collect();
            (class, places)
        });
        let mut served = std::vec::Vec::new();
        while served.len() < 2 * COUNT {
            // The last ones ask first.
            for (class, places) in &mut places {
                let class = *class;
                while let Some(at) = places
                    .iter()
                    .rposition(|&place| space.enter(class, 10, place) == Ok(true))
                {
                    places.remove(at);
                }
            }
            let count = space.queue.tickets.len();
            let numbers = space.queue.tickets.iter().map(|t| t.number);
            assert!(count <= 2 * TICKETS && numbers.clone().is_sorted());
            let first = space.queue.tickets[0].number;
            let more = space.dequeue(first);
            assert_eq!(more, places.iter().any(|(_, places)| !places.is_empty()));
            served.push(first);
        }
        let users = || served.iter().filter(|&&number| number < COUNT as u64);
        assert!(users().is_sorted() && users().count() == COUNT);
        let others = served.iter().filter(|&&number| number >= COUNT as u64);
        assert!(others.is_sorted());
        assert!(!space.queued(User) && !space.queued(Metadata));
    }

    #[test]
    fn a_class_is_served_in_order() {
        let mut space = space(User.leaves(1, 2) + 1);
        let large = space.enqueue(User, 900).unwrap();
        let later = space.enqueue(User, 200).unwrap();
        let last = space.enqueue(User, 50).unwrap();
        assert!(space.serve(&SUPPLY, None, |_| {}));
        // There would be room for the last one.
        let expected = [Granted(User), Waiting, Waiting];
        assert_eq!(answers(&space, &[large, later, last])[..], expected);
        assert!(!space.serve(&SUPPLY, None, |_| {}));
        assert!(space.is_first(later) && !space.is_first(last));
        space.ungrant(large);
        assert!(space.is_first(large));
    }

    #[test]
    fn a_class_does_not_hold_up_another() {
        let mut space = space(Metadata.leaves(1, 2) + 1);
        let numbers = [User, Metadata, User, Discard].map(|c| space.enqueue(c, 400).unwrap());
        assert!(space.serve(&SUPPLY, None, |_| {}));
        let expected = [Waiting, Granted(Metadata), Waiting, Granted(Discard)];
        assert_eq!(answers(&space, &numbers)[..], expected);
    }

    #[test]
    fn only_those_who_waited_get_the_verdict() {
        let mut space = space(3);
        let waited = space.enqueue(User, 10).unwrap();
        let asked = space.next_ticket();
        let came = space.enqueue(User, 10).unwrap();
        let error = Error::NoSpace;
        assert!(space.serve(&SUPPLY, Some(Verdict { asked, error }), |_| {}));
        let expected = [Refused(error), Waiting];
        assert_eq!(answers(&space, &[waited, came])[..], expected);
        assert!(space.refused() && space.waits(u64::MAX) && !space.waits(asked));
    }

    #[test]
    fn the_first_writes_may_use_what_is_left_to_an_open() {
        let mut space = space(PostMountWrite.leaves(1, 2) + 1);
        let numbers = [User, User].map(|c| space.enqueue(c, 600).unwrap());
        let supply = Supply {
            early: true,
            ..SUPPLY
        };
        assert!(!space.serve(&supply, None, |_| {}));
        let asked = space.next_ticket();
        let error = Error::NoSpace;
        assert!(space.serve(&supply, Some(Verdict { asked, error }), |_| {}));
        let expected = [Granted(PostMountWrite), Refused(error)];
        assert_eq!(answers(&space, &numbers)[..], expected);
    }
}
