//! The clients that post: each batch under its own idempotency key, again and again until it is acknowledged. Some batches are posted
//! twice on purpose, and some are given up when their answer is lost.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;

use super::Ground;
use super::door::{Answer, Request};
use super::rows::{Encoding, Shape};
use super::script::{Draws, StreamScript};
use crate::cli::Failure;
use crate::stream::decode::Format;

/// Ids of one client's rows begin at its number times this.
const IDS: u64 = 1 << 32;
/// The longest rest between two batches.
const REST: Duration = Duration::from_millis(4);
/// Rows of a batch, and of one in forty, which is more than one record holds.
const ROWS: Range<u64> = 1..40;
const MANY_ROWS: Range<u64> = 1025..1300;

/// The sequence numbers that an acknowledgement said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// One batch, and what came of it.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) stream: &'static str,
    pub(super) key: String,
    pub(super) ids: Range<u64>,
    shape: Shape,
    format: Format,
    /// Where it is, by its acknowledgement; none: it was given up without one.
    pub(super) place: Option<Place>,
}

impl Post {
    /// A batch as a test of the oracle needs it.
    #[cfg(test)]
    pub(super) fn of(ids: Range<u64>, place: Option<Place>) -> Post {
        Post { stream: "table", key: format!("key-{}", ids.start), ids, shape: Shape::Points, format: Format::Json, place }
    }

    fn request(&self, encoding: Encoding, query: &str) -> Result<Request, Failure> {
        let headers = vec![
            ("content-type", self.format.content_type().to_owned()),
            ("content-encoding", encoding.word().to_owned()),
            ("idempotency-key", self.key.clone()),
        ];
        let body = encoding.of(self.shape.body(self.format, self.ids.clone())?)?;
        Ok(Request { method: Method::POST, path: format!("/v1/streams/{}/batches{query}", self.stream), headers, body })
    }

    /// The place that an answer says.
    fn placed(&self, answer: &Answer) -> Result<Place, Failure> {
        let number = |name: &str| answer.body[name].as_u64();
        match (number("first_sequence"), number("sequence"), number("rows")) {
            (Some(first), Some(last), Some(rows))
                if answer.is_success() && rows == last + 1 - first && rows == self.ids.end - self.ids.start =>
            {
                Ok(Place { first, last })
            }
            _ => Err(format!("the post {} was answered with {}: {}", self.key, answer.status, answer.body).into()),
        }
    }
}

/// One client: posts until the round is done.
pub(super) async fn client(ground: Arc<Ground>, number: u64) -> Result<Vec<Post>, Failure> {
    let script = &ground.script;
    let mut draws = Draws::new(script.seed, script.round, &format!("client {number}"));
    let (mut posts, mut next) = (Vec::new(), number * IDS);
    while !ground.is_done() {
        let stream = &script.streams[draws.within(0..script.streams.len() as u64) as usize];
        let rows = if draws.once_in(40) { MANY_ROWS } else { ROWS };
        let rows = draws.within(rows);
        let post = batch(&mut draws, stream, next..next + rows, number);
        next += rows;
        posts.push(send(&ground, &mut draws, post).await?);
        tokio::time::sleep(draws.below(REST)).await;
    }
    Ok(posts)
}

fn batch(draws: &mut Draws, stream: &StreamScript, ids: Range<u64>, client: u64) -> Post {
    let formats: Vec<Format> = Format::ALL.into_iter().filter(|&format| stream.shape.comes_as(format)).collect();
    let format = draws.one_of(&formats);
    Post { stream: stream.name, key: format!("{client}-{}", ids.start), ids, shape: stream.shape, format, place: None }
}

pub(super) fn encoding(draws: &mut Draws) -> Encoding {
    draws.one_of(&[Encoding::Identity, Encoding::Identity, Encoding::Gzip, Encoding::Zstd])
}

/// Posts one batch in one of the ways that clients have.
async fn send(ground: &Ground, draws: &mut Draws, mut post: Post) -> Result<Post, Failure> {
    let request =
        post.request(encoding(draws), if draws.once_in(8) { "?wait=applied&timeout_seconds=1&model=m0" } else { "" })?;
    // The model learns from the table; others would be refused.
    let request = if post.stream == "table" { request } else { post.request(encoding(draws), "")? };
    match draws.within(0..10) {
        // Given up at the first answer that is lost.
        0 => {
            if let (Some(answer), _) = ground.door.insist(&request, true).await? {
                post.place = Some(post.placed(&answer)?);
            }
        }
        // Twice at once.
        1 => {
            let (one, other) = tokio::join!(ground.door.insist(&request, false), ground.door.insist(&request, false));
            for (answer, _) in [one?, other?] {
                acknowledge(ground, &mut post, answer.as_ref())?;
            }
        }
        way => {
            let (answer, _) = ground.door.insist(&request, false).await?;
            acknowledge(ground, &mut post, answer.as_ref())?;
            // Once more, later, compressed otherwise, as if the answer had been lost.
            if way == 2 {
                tokio::time::sleep(draws.below(REST)).await;
                again(ground, &mut post, encoding(draws)).await?;
            }
        }
    }
    if matches!(post.shape, Shape::Late { .. }) {
        ground.to_label.lock().push((post.ids.clone(), post.place.is_some()));
    }
    if post.place.is_some() {
        ground.acknowledged(post.ids.end - post.ids.start);
    }
    Ok(post)
}

/// Notes what an answer says of a post; another place than before is a complaint.
fn acknowledge(ground: &Ground, post: &mut Post, answer: Option<&Answer>) -> Result<(), Failure> {
    let Some(answer) = answer else { return Ok(()) };
    let place = post.placed(answer)?;
    if let Some(before) = post.place.replace(place)
        && before != place
    {
        ground.complain(format!("the post {} was acknowledged at {before:?} and then at {place:?}", post.key));
    }
    Ok(())
}

/// Posts once more what was acknowledged: the answer is to be the same, and to say that it is no new one.
pub(super) async fn again(ground: &Ground, post: &mut Post, encoding: Encoding) -> Result<(), Failure> {
    let (answer, _) = ground.door.insist(&post.request(encoding, "")?, false).await?;
    if let Some(answer) = answer.as_ref().filter(|answer| !answer.is_replayed) {
        ground.complain(format!("the post {} was taken as a new one: {}", post.key, answer.body));
    }
    acknowledge(ground, post, answer.as_ref())
}
