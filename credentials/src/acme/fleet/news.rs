//! What is told of one certificate, until somebody has taken it in.

use tokio::sync::{Mutex, MutexGuard, watch};

/// The newest of what is told; what was told before it is of no use any more.
pub(super) struct News(Mutex<watch::Receiver<String>>);

/// Something that was told. It stays news until it [was taken in](Self::taken_in), so that nothing is lost where
/// this is dropped before: work on a certificate waits for news and for its turn to order at once, and the turn may
/// come while a pair is written to the disk.
pub(super) struct Told<'a> {
    told: MutexGuard<'a, watch::Receiver<String>>,
    pub(super) sealed: String,
}

impl News {
    pub(super) fn of(told: &watch::Sender<String>) -> Self {
        let mut told = told.subscribe();
        // What was told before this was there is still news.
        told.mark_changed();
        Self(Mutex::new(told))
    }

    /// Waits for something that is told, and was not taken in yet.
    pub(super) async fn next(&self) -> Told<'_> {
        let mut told = self.0.lock().await;
        loop {
            if told.changed().await.is_err() {
                // The fleet, which a share holds, has the sender.
                std::future::pending::<()>().await;
            }
            let sealed = told.borrow().clone();
            if !sealed.is_empty() {
                told.mark_changed();
                return Told { told, sealed };
            }
        }
    }
}

impl Told<'_> {
    /// It is no news any more, whatever came of it; what was told meanwhile is.
    pub(super) fn taken_in(mut self) {
        if *self.told.borrow_and_update() != self.sealed {
            self.told.mark_changed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;

    /// What is news now, taken in.
    fn heard(news: &News) -> Option<String> {
        let next = pin!(news.next());
        match next.poll(&mut Context::from_waker(Waker::noop())) {
            std::task::Poll::Ready(told) => {
                let sealed = told.sealed.clone();
                told.taken_in();
                Some(sealed)
            }
            std::task::Poll::Pending => None,
        }
    }

    #[test]
    fn what_was_told_before_is_heard_once() {
        let told = watch::Sender::new(String::new());
        told.send_replace("a".to_owned());
        let news = News::of(&told);
        assert_eq!(heard(&news).as_deref(), Some("a"));
        assert_eq!(heard(&news), None);
        told.send_replace(String::new());
        assert_eq!(heard(&news), None, "nothing is no news");
    }

    #[tokio::test]
    async fn what_was_not_taken_in_is_still_news() {
        let told = watch::Sender::new("a".to_owned());
        let news = News::of(&told);
        drop(news.next().await);
        assert_eq!(heard(&news).as_deref(), Some("a"));
        assert_eq!(heard(&news), None);
    }

    #[tokio::test]
    async fn what_is_told_while_something_is_taken_in_comes_after_it() {
        let told = watch::Sender::new("a".to_owned());
        let news = News::of(&told);
        let first = news.next().await;
        told.send_replace("b".to_owned());
        assert_eq!(first.sealed, "a");
        first.taken_in();
        assert_eq!(heard(&news).as_deref(), Some("b"));
        assert_eq!(heard(&news), None);
    }
}
