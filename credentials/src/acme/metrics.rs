//! What obtaining certificates counts.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};

use super::{MAX_CERTIFICATES, machine::Time, schedule::Window};

/// Attempts to obtain a certificate. Labels: `authority`; `outcome`, `issued` or why not.
pub(super) const ATTEMPTS: &str = "wavry_credentials_acme_attempts_total";
/// From the first request to the certificate in use. Label: `authority`.
pub(super) const ATTEMPT: &str = "wavry_credentials_acme_attempt_seconds";
/// When it was last obtained. Label: `certificate`, as of all that is told of each.
const LAST_SUCCESS: &str = "wavry_credentials_acme_last_success_timestamp_seconds";
/// When the next attempt is made, back-off included.
const NEXT_ATTEMPT: &str = "wavry_credentials_acme_next_attempt_timestamp_seconds";
/// The window in which the authority wants the certificate renewed. Further label: `edge`, `start` or `end`.
const WINDOW: &str = "wavry_credentials_acme_window_timestamp_seconds";
/// When the attempt under way began.
const BEGAN: &str = "wavry_credentials_acme_attempt_began_timestamp_seconds";
/// Attempts that failed since the last certificate.
const FAILURES: &str = "wavry_credentials_acme_consecutive_failures";
/// Connections to the listener for challenges that are over. Labels: `type`; `outcome`.
pub(super) const CHALLENGES: &str = "wavry_credentials_acme_challenge_connections_total";

/// Hosts of services that a certificate is kept for, or would be.
pub(super) const DEMAND_HOSTS: &str = "wavry_credentials_acme_service_hosts";
/// Hosts of services beyond the bound.
pub(super) const DEMAND_LEFT_OUT: &str = "wavry_credentials_acme_service_hosts_left_out";
/// Hosts of services that a client was the first to ask for.
pub(super) const DEMAND_ASKED: &str = "wavry_credentials_acme_service_hosts_asked_total";
/// Times that the first certificate of a host was put off by the rate.
pub(super) const DEMAND_PUT_OFF: &str = "wavry_credentials_acme_service_hosts_put_off_total";

/// The certificates that gauges tell apart. Hosts of services come and go as long as the process lives, and a label stays
/// with the recorder: no more have one than there can be at once.
#[derive(Default)]
pub(super) struct Labels(Mutex<HashSet<Arc<str>>>);

impl Labels {
    /// What is told of a certificate; nothing is of one beyond the bound.
    pub(super) fn told(&self, certificate: &str) -> Told {
        let mut labels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = labels.get(certificate).cloned();
        let label = known.or_else(|| {
            let new: Arc<str> = certificate.into();
            let has_room = labels.len() < MAX_CERTIFICATES;
            (has_room && labels.insert(new.clone())).then_some(new)
        });
        Told(label)
    }
}

/// What is told of one certificate, for as long as it is looked after.
pub(super) struct Told(Option<Arc<str>>);

impl Told {
    pub(super) fn obtained(&self, at: Time) {
        self.set(LAST_SUCCESS, seconds(at));
    }

    pub(super) fn next_attempt(&self, at: Time) {
        self.set(NEXT_ATTEMPT, seconds(at));
    }

    pub(super) fn window(&self, window: Window) {
        self.edges(seconds(window.start), seconds(window.end));
    }

    /// When the attempt under way began, if there is one.
    pub(super) fn began(&self, at: Option<Time>) {
        self.set(BEGAN, at.map_or(f64::NAN, seconds));
    }

    pub(super) fn failures(&self, since_success: u32) {
        self.set(FAILURES, since_success.into());
    }

    fn set(&self, name: &'static str, value: f64) {
        if let Some(label) = &self.0 {
            gauge!(name, "certificate" => label.to_string()).set(value);
        }
    }

    fn edges(&self, start: f64, end: f64) {
        if let Some(label) = &self.0 {
            for (edge, value) in [("start", start), ("end", end)] {
                gauge!(WINDOW, "certificate" => label.to_string(), "edge" => edge).set(value);
            }
        }
    }
}

impl Drop for Told {
    /// No alarm tells of what nobody looks after.
    fn drop(&mut self) {
        for name in [LAST_SUCCESS, NEXT_ATTEMPT, BEGAN, FAILURES] {
            self.set(name, f64::NAN);
        }
        self.edges(f64::NAN, f64::NAN);
    }
}

fn seconds(at: Duration) -> f64 {
    at.as_secs_f64()
}

/// Describes them to the recorder.
pub(crate) fn describe() {
    super::fleet::describe();
    describe_gauge!(
        DEMAND_HOSTS,
        Unit::Count,
        "Hosts of services that may have certificates of their own"
    );
    describe_gauge!(
        DEMAND_LEFT_OUT,
        Unit::Count,
        "Hosts of services that have none, since there are too many"
    );
    describe_counter!(
        DEMAND_ASKED,
        Unit::Count,
        "Hosts of services without a certificate that a client was the first to ask for"
    );
    describe_counter!(
        DEMAND_PUT_OFF,
        Unit::Count,
        "Times that the first certificate of a host was put off by their rate"
    );
    describe_counter!(
        ATTEMPTS,
        Unit::Count,
        "Attempts to obtain a certificate, by authority and outcome"
    );
    describe_histogram!(
        ATTEMPT,
        Unit::Seconds,
        "From the first request for a certificate to its being in use"
    );
    describe_gauge!(
        LAST_SUCCESS,
        Unit::Seconds,
        "When a certificate was last obtained, in seconds since the Unix epoch"
    );
    describe_gauge!(
        NEXT_ATTEMPT,
        Unit::Seconds,
        "When the next attempt is made to obtain one, in seconds since the Unix epoch"
    );
    describe_gauge!(
        BEGAN,
        Unit::Seconds,
        "When the attempt to obtain a certificate began that is under way, in seconds since the Unix epoch"
    );
    describe_gauge!(
        FAILURES,
        Unit::Count,
        "Attempts to obtain a certificate that failed since the last one that did not"
    );
    describe_gauge!(
        WINDOW,
        Unit::Seconds,
        "When the authority wants the certificate renewed, in seconds since the Unix epoch"
    );
    describe_counter!(
        CHALLENGES,
        Unit::Count,
        "Connections to the listener for challenges that are over"
    );
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn certificates_are_told_apart_and_not_without_end() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let _recording = metrics::set_default_local_recorder(&recorder);
        let labels = Labels::default();
        let (one, other) = (labels.told("a.example"), labels.told("b.example"));
        one.next_attempt(Duration::from_secs(1));
        other.next_attempt(Duration::from_secs(2));
        other.failures(3);
        let has = |line: &str| {
            let text = recorder.handle().render();
            assert!(text.contains(line), "{line} is not in\n{text}");
        };
        has("wavry_credentials_acme_next_attempt_timestamp_seconds{certificate=\"a.example\"} 1");
        has("wavry_credentials_acme_next_attempt_timestamp_seconds{certificate=\"b.example\"} 2");
        has("wavry_credentials_acme_consecutive_failures{certificate=\"b.example\"} 3");
        drop(other);
        has("wavry_credentials_acme_next_attempt_timestamp_seconds{certificate=\"b.example\"} NaN");
        has("wavry_credentials_acme_consecutive_failures{certificate=\"b.example\"} NaN");
        let all: Vec<_> = (0..2 * MAX_CERTIFICATES)
            .map(|n| labels.told(&n.to_string()))
            .collect();
        all.iter().for_each(|told| told.failures(1));
        let told = all.iter().filter(|told| told.0.is_some()).count();
        assert_eq!(told, MAX_CERTIFICATES - 2);
        assert!(labels.told("a.example").0.is_some(), "it is known");
    }
}
