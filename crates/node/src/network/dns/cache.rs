//! Answers of upstream resolvers, kept for at most a minute.

use std::collections::HashMap;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use parking_lot::Mutex;
use tokio::time::Instant;

/// The most answers kept; when full, old ones go, else all.
const MAX_ENTRIES: usize = 4096;
const MAX_AGE: Duration = Duration::from_secs(60);
const MAX_NEGATIVE_AGE: Duration = Duration::from_secs(10);

type Key = (String, RecordType);

struct Entry {
    answer: Message,
    stored: Instant,
    expires: Instant,
}

/// The kept answers, by name and type.
#[derive(Default)]
pub struct Cache(Mutex<HashMap<Key, Entry>>);

impl Cache {
    /// A kept answer with its lifetimes lowered by the time it has been here.
    pub fn get(&self, name: &str, kind: RecordType) -> Option<Message> {
        let now = Instant::now();
        let mut entries = self.0.lock();
        let key = (name.to_owned(), kind);
        let entry = entries.get(&key)?;
        if now >= entry.expires {
            entries.remove(&key);
            return None;
        }
        let age = now.duration_since(entry.stored).as_secs().try_into().unwrap_or(u32::MAX);
        let mut answer = entry.answer.clone();
        for record in answer.answers.iter_mut().chain(&mut answer.authorities) {
            record.decrement_ttl(age);
        }
        Some(answer)
    }

    /// Keeps an answer as long as its records allow; failures are not kept.
    pub fn put(&self, name: &str, kind: RecordType, answer: &Message) {
        let Some(lifetime) = lifetime(answer).filter(|time| !time.is_zero()) else { return };
        let now = Instant::now();
        let mut entries = self.0.lock();
        if entries.len() >= MAX_ENTRIES {
            entries.retain(|_, entry| entry.expires > now);
        }
        if entries.len() >= MAX_ENTRIES {
            entries.clear();
        }
        let entry = Entry { answer: answer.clone(), stored: now, expires: now + lifetime };
        entries.insert((name.to_owned(), kind), entry);
    }
}

/// How long an answer may be kept (RFC 2308 for those without records).
fn lifetime(answer: &Message) -> Option<Duration> {
    let code = answer.metadata.response_code;
    if !matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) || answer.metadata.truncation {
        return None;
    }
    let seconds = |ttl: u32| Duration::from_secs(ttl.into());
    if let Some(shortest) = answer.answers.iter().map(|record| record.ttl).min() {
        return Some(seconds(shortest).min(MAX_AGE));
    }
    answer.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(seconds(soa.minimum.min(record.ttl)).min(MAX_NEGATIVE_AGE)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::OpCode;
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, Record};

    fn answer(ttl: u32) -> Message {
        let mut message = Message::response(1, OpCode::Query);
        let data = RData::A(A(std::net::Ipv4Addr::LOCALHOST));
        message.add_answer(Record::from_rdata(Name::from_ascii("a.").unwrap(), ttl, data));
        message
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ages_and_goes() {
        let cache = Cache::default();
        cache.put("a", RecordType::A, &answer(30));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(cache.get("a", RecordType::A).unwrap().answers[0].ttl, 10);
        assert!(cache.get("a", RecordType::AAAA).is_none());
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(cache.get("a", RecordType::A).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_and_zero_lifetimes_are_not_kept() {
        let cache = Cache::default();
        cache.put("a", RecordType::A, &answer(0));
        let failed = Message::error_msg(1, OpCode::Query, ResponseCode::ServFail);
        cache.put("b", RecordType::A, &failed);
        assert!(cache.get("a", RecordType::A).is_none());
        assert!(cache.get("b", RecordType::A).is_none());
    }
}
