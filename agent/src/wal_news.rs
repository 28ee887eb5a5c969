//! What the streams of a node made durable, told about twice a second while there is news (RELIABILITY §5.3);
//! and that all is well with those that have none, for all of them in one instant (ADR 16).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use holdfast_domain::job::{Idleness, WalReport, WalReportRequest, WalReportResponse};
use holdfast_domain::{BootId, IncarnationId};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::client::Gateway;
use crate::error::{Result, chain};
use crate::node::Node;

/// With a look at each server a second, the recovery point of an idle one is told 1.5 s late at most.
const NEWS_EVERY: Duration = Duration::from_millis(500);
/// A stream without news that is not idle – the server does not answer, say – says so this often.
const QUIET_EVERY: Duration = Duration::from_secs(15);
/// Without news for so long, and seen caught up since, a stream is idle.
const IDLE_AFTER: Duration = Duration::from_secs(3);
/// An idle stream that is not seen caught up for so long is not idle any more.
const SEEN_WITHIN: Duration = Duration::from_secs(3);
/// A refused report is told again after this long.
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// So many reports at most go in one call; the rest follows with the next.
const REPORTS_PER_CALL: usize = 64;

/// What was told, so that the next call has only what is new.
#[derive(Debug, Default)]
pub(crate) struct WalNews {
    sent: HashMap<IncarnationId, (Instant, WalReport)>,
    /// Refused ones are not repeated before this, whatever is new.
    not_before: HashMap<IncarnationId, Instant>,
    idle: HashMap<IncarnationId, Idle>,
    /// The latest instant told for all idle streams, heard or not.
    until: Option<DateTime<Utc>>,
}

#[derive(Debug)]
struct Idle {
    caught_up_at: DateTime<Utc>,
    seen: Instant,
    /// The scheduler has it. It may have it before we know.
    is_known: bool,
}

impl WalNews {
    /// What to say now, given the present reports of all streams. Nothing of it counts as told before
    /// [`Self::answered`].
    fn next(&mut self, boot: BootId, reports: Vec<WalReport>, now: Instant) -> WalReportRequest {
        let ended = self.look_after_idle(&reports, now);
        self.find_idle(&reports, now);
        let begun = self.idle.iter().filter(|(_, idle)| !idle.is_known);
        let begun = begun.map(|(id, _)| *id).filter(|id| !ended.contains(id));
        let begun = begun.collect();
        let remaining = self.idle.iter().filter(|(id, _)| !ended.contains(id));
        let until = remaining.map(|(_, idle)| idle.caught_up_at).min();
        let until = until.filter(|until| Some(*until) > self.until);
        self.until = self.until.max(until);
        WalReportRequest {
            boot,
            reports: self.worth_telling(reports, &ended, now),
            idleness: Idleness {
                ended,
                begun,
                until,
            },
        }
    }

    /// Takes note of the time of those that are idle still. Which are not any more?
    fn look_after_idle(&mut self, reports: &[WalReport], now: Instant) -> Vec<IncarnationId> {
        let mut ended = Vec::new();
        for (id, idle) in &mut self.idle {
            let report = reports.iter().find(|report| report.incarnation == *id);
            let Some(report) = report.filter(|report| !is_news(self.sent.get(id), report)) else {
                ended.push(*id);
                continue;
            };
            match report.caught_up_at {
                Some(at) if at > idle.caught_up_at => {
                    (idle.caught_up_at, idle.seen) = (at, now);
                }
                _ if now.duration_since(idle.seen) > SEEN_WITHIN => ended.push(*id),
                _ => {}
            }
        }
        ended
    }

    /// A stream whose time lies before what was told for all waits: it would be ahead of the truth.
    fn find_idle(&mut self, reports: &[WalReport], now: Instant) {
        for report in reports {
            let sent = self.sent.get(&report.incarnation);
            let (Some((at, last)), Some(caught_up_at)) = (sent, report.caught_up_at) else {
                continue;
            };
            let is_idle = !is_news(sent, report)
                && now.duration_since(*at) >= IDLE_AFTER
                && Some(caught_up_at) > last.caught_up_at
                && Some(caught_up_at) >= self.until;
            if is_idle {
                self.idle.entry(report.incarnation).or_insert(Idle {
                    caught_up_at,
                    seen: now,
                    is_known: false,
                });
            }
        }
    }

    /// The reports worth a call now.
    fn worth_telling(
        &self,
        reports: Vec<WalReport>,
        ended: &[IncarnationId],
        now: Instant,
    ) -> Vec<WalReport> {
        reports
            .into_iter()
            .filter(|report| {
                let id = &report.incarnation;
                if self.not_before.get(id).is_some_and(|at| *at > now) {
                    return false;
                }
                let sent = self.sent.get(id);
                let is_idle = self.idle.contains_key(id) && !ended.contains(id);
                is_news(sent, report)
                    || (!is_idle
                        && sent.is_some_and(|(at, _)| now.duration_since(*at) >= QUIET_EVERY))
            })
            .take(REPORTS_PER_CALL)
            .collect()
    }

    /// The scheduler has answered. Gives the reports that it kept; what it refused stays with its stream
    /// and is told again later, so that one server's trouble leaves the others' recovery points alone.
    fn answered(
        &mut self,
        request: WalReportRequest,
        answer: &WalReportResponse,
        now: Instant,
    ) -> Vec<WalReport> {
        let WalReportRequest {
            mut reports,
            idleness,
            ..
        } = request;
        for refused in &answer.refused {
            tracing::warn!(
                server.incarnation = %refused.incarnation,
                code = refused.code,
                message = refused.message,
                "WAL news was refused"
            );
            self.not_before
                .insert(refused.incarnation, now + REFUSED_FOR);
            reports.retain(|report| report.incarnation != refused.incarnation);
        }
        self.not_before.retain(|_, at| *at > now);
        for id in &idleness.ended {
            self.idle.remove(id);
        }
        for id in &idleness.begun {
            if let Some(idle) = self.idle.get_mut(id) {
                idle.is_known = true;
            }
        }
        for report in &reports {
            self.sent.insert(report.incarnation, (now, report.clone()));
        }
        reports
    }

    fn forget_but(&mut self, known: &[IncarnationId]) {
        self.sent.retain(|id, _| known.contains(id));
    }

    /// Says what is new, if anything is, and lets the streams forget what was kept.
    pub(crate) async fn tell(
        &mut self,
        node: &Node,
        gateway: &Gateway,
        boot: BootId,
    ) -> Result<()> {
        let request = self.next(boot, node.wal_news(), Instant::now());
        if request.reports.is_empty() && request.idleness.says_nothing() {
            return Ok(());
        }
        let answer = gateway.wal(&request).await?;
        let kept = self.answered(request, &answer, Instant::now());
        node.wal_kept(&kept);
        let known: Vec<_> = node.servers().iter().map(|s| s.incarnation()).collect();
        self.forget_but(&known);
        Ok(())
    }
}

/// Never told, or more durable WAL, a new object or hole. That time passed on an idle server is none.
fn is_news(sent: Option<&(Instant, WalReport)>, now: &WalReport) -> bool {
    let Some((_, last)) = sent else { return true };
    !now.objects.is_empty()
        || !now.superseded.is_empty()
        || !now.timelines.is_empty()
        || now.timeline != last.timeline
        || now.durable != last.durable
        || now.last_counting != last.last_counting
        || now.gap != last.gap
}

/// Tells WAL news while there is some, for ever.
pub async fn keep_telling_wal(
    node: Arc<Node>,
    gateway: Arc<Gateway>,
    boot: BootId,
    shutdown: CancellationToken,
) {
    let mut news = WalNews::default();
    let mut beat = tokio::time::interval(NEWS_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silent_until = Instant::now();
    loop {
        tokio::select! {
            _ = beat.tick() => {}
            () = shutdown.cancelled() => return,
        }
        if Instant::now() < silent_until {
            continue;
        }
        if let Err(error) = news.tell(&node, &gateway, boot).await {
            tracing::warn!(error = chain(&error), "could not tell WAL news");
            silent_until = Instant::now() + Duration::from_secs(5);
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use holdfast_domain::job::RefusedWalReport;
    use holdfast_domain::{Lsn, Timeline};
    use uuid::Uuid;

    use super::*;

    const A: IncarnationId = IncarnationId(Uuid::nil());
    const B: IncarnationId = IncarnationId(Uuid::max());

    fn report(incarnation: IncarnationId, durable: u64, caught_up_s: i64) -> WalReport {
        WalReport {
            incarnation,
            timeline: Timeline::FIRST,
            durable: Lsn(durable),
            objects: Vec::new(),
            superseded: Vec::new(),
            timelines: Vec::new(),
            caught_up_at: Some(at(caught_up_s)),
            last_counting: None,
            held_bytes: 0,
            gap: None,
        }
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::seconds(seconds)
    }

    /// Tells, and is heard.
    fn tell(news: &mut WalNews, reports: Vec<WalReport>, now: Instant) -> WalReportRequest {
        let request = news.next(BootId(Uuid::nil()), reports, now);
        news.answered(request.clone(), &WalReportResponse::default(), now);
        request
    }

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_stream_that_is_not_seen_caught_up_reports_every_fifteen_seconds_and_a_busy_one_at_once() {
        let start = Instant::now();
        let mut news = WalNews::default();
        let mut told = |durable, seconds| {
            let request = tell(
                &mut news,
                vec![report(A, durable, 0)],
                after(start, seconds),
            );
            assert!(request.idleness.says_nothing());
            !request.reports.is_empty()
        };
        assert!(told(8, 0));
        assert!(!told(8, 14));
        assert!(told(8, 15));
        assert!(told(16, 16));
        assert!(!told(16, 17));
    }

    #[test]
    fn idle_streams_share_the_earliest_instant() {
        let start = Instant::now();
        let mut news = WalNews::default();
        let both = |a, b| vec![report(A, 8, a), report(B, 8, b)];
        assert_eq!(tell(&mut news, both(0, 0), start).reports, both(0, 0));
        let begun = tell(&mut news, both(3, 4), after(start, 4));
        assert_eq!(begun.reports, []);
        let mut idle = begun.idleness;
        idle.begun.sort();
        assert_eq!((idle.begun, idle.until), (vec![A, B], Some(at(3))));
        let later = tell(&mut news, both(60, 59), after(start, 60));
        assert_eq!(later.reports, [], "not even after a while");
        let said = |request: WalReportRequest| {
            let Idleness {
                ended,
                begun,
                until,
            } = request.idleness;
            (ended, begun, until)
        };
        assert_eq!(said(later), (vec![], vec![], Some(at(59))));
        // One gets work: it ends in the call that tells its news, and holds the other up no longer.
        let busy = vec![report(A, 16, 60), report(B, 8, 62)];
        let busy = tell(&mut news, busy, after(start, 62));
        assert_eq!(busy.reports, [report(A, 16, 60)]);
        assert_eq!(said(busy), (vec![A], vec![], Some(at(62))));
        // It is idle again, but not before it is as far as what was told for all.
        let behind = vec![report(A, 16, 61), report(B, 8, 63)];
        let behind = tell(&mut news, behind, after(start, 70));
        assert_eq!(said(behind), (vec![], vec![], Some(at(63))));
        let again = tell(
            &mut news,
            vec![report(A, 16, 66), report(B, 8, 67)],
            after(start, 71),
        );
        assert_eq!(said(again), (vec![], vec![A], Some(at(66))));
        // One goes away, the other is not seen any more.
        let gone = tell(&mut news, vec![report(A, 16, 66)], after(start, 72));
        assert_eq!(said(gone), (vec![B], vec![], None));
        let unseen = tell(&mut news, vec![report(A, 16, 66)], after(start, 76));
        assert_eq!(said(unseen), (vec![A], vec![], None));
    }

    #[test]
    fn what_was_not_answered_is_told_again_and_believed_to_be_known() {
        let start = Instant::now();
        let mut news = WalNews::default();
        tell(&mut news, vec![report(A, 8, 0)], start);
        let boot = BootId(Uuid::nil());
        let unheard = news.next(boot, vec![report(A, 8, 3)], after(start, 4));
        assert_eq!(unheard.idleness.begun, [A]);
        let again = news.next(boot, vec![report(A, 8, 5)], after(start, 6));
        assert_eq!(
            (again.idleness.begun, again.idleness.until),
            (vec![A], Some(at(5)))
        );
        // It may have been heard, so its end must be.
        let busy = news.next(boot, vec![report(A, 16, 5)], after(start, 7));
        assert_eq!(busy.idleness.ended, [A]);
        assert_eq!(busy.idleness.begun, []);
        let busy = news.next(boot, vec![report(A, 16, 5)], after(start, 8));
        assert_eq!(busy.idleness.ended, [A], "until it is heard");
    }

    #[test]
    fn a_refused_report_waits_and_the_others_do_not() {
        let start = Instant::now();
        let mut news = WalNews::default();
        let answer = WalReportResponse {
            refused: vec![RefusedWalReport {
                incarnation: A,
                code: "StaleLease".into(),
                message: "not this node's".into(),
            }],
        };
        let boot = BootId(Uuid::nil());
        let request = news.next(boot, vec![report(A, 8, 0), report(B, 8, 0)], start);
        let kept = news.answered(request, &answer, start);
        assert_eq!(kept, [report(B, 8, 0)]);
        let both = || vec![report(A, 16, 1), report(B, 16, 1)];
        assert_eq!(
            news.next(boot, both(), after(start, 1)).reports,
            [report(B, 16, 1)]
        );
        assert_eq!(news.next(boot, both(), start + REFUSED_FOR).reports, both());
    }
}
