//! What was let in within a day. Pure, with the clock handed in.

use std::collections::VecDeque;

use super::Minute;

/// Requests and tokens by piece of the day.
#[derive(Debug, Default)]
pub struct Day {
    pieces: VecDeque<Piece>,
}

#[derive(Debug)]
struct Piece {
    number: u64,
    requests: u64,
    tokens: u64,
}

impl Day {
    /// Forgets what belongs to no day any more.
    pub fn forget(&mut self, minute: Minute, now_ms: u64) {
        let piece = now_ms / minute.day_piece_ms();
        while let Some(first) = self.pieces.front()
            && first.number + Minute::DAY_PIECES < piece
        {
            self.pieces.pop_front();
        }
    }

    /// Counts a call. Returns the number of its piece.
    pub fn count(&mut self, tokens: u64, minute: Minute, now_ms: u64) -> u64 {
        let number = now_ms / minute.day_piece_ms();
        match self.pieces.back_mut() {
            Some(last) if last.number == number => {
                last.requests += 1;
                last.tokens += tokens;
            }
            _ => self.pieces.push_back(Piece {
                number,
                requests: 1,
                tokens,
            }),
        }
        number
    }

    /// Corrects the tokens of a call that was counted in this piece.
    pub fn correct(&mut self, number: u64, guessed: u64, actual: u64) {
        let piece = self.pieces.iter_mut().find(|piece| piece.number == number);
        if let Some(piece) = piece {
            piece.tokens = piece.tokens + actual - guessed;
        }
    }

    /// Milliseconds until a day has room for another request, if it has none now.
    pub fn requests_wait_ms(&self, max: u64, minute: Minute, now_ms: u64) -> Option<u64> {
        self.wait_ms(|piece| piece.requests, 1, max, minute, now_ms)
    }

    /// The same of tokens. A call of more than a day allows is let in when there is no other.
    pub fn tokens_wait_ms(
        &self,
        tokens: u64,
        max: u64,
        minute: Minute,
        now_ms: u64,
    ) -> Option<u64> {
        self.wait_ms(|piece| piece.tokens, tokens, max, minute, now_ms)
    }

    fn wait_ms(
        &self,
        of: impl Fn(&Piece) -> u64,
        wanted: u64,
        max: u64,
        minute: Minute,
        now_ms: u64,
    ) -> Option<u64> {
        let today: u64 = self.pieces.iter().map(&of).sum();
        let needed = (today + wanted).saturating_sub(max).min(today);
        if needed == 0 {
            return None;
        }
        let mut freed = 0;
        let last = self.pieces.iter().find(|piece| {
            freed += of(piece);
            freed >= needed
        });
        let last = last.expect("all of it is enough").number;
        Some((last + Minute::DAY_PIECES + 1) * minute.day_piece_ms() - now_ms)
    }
}
