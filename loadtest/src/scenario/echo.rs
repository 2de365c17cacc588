//! Client → gateway → relay → echo, beside client → echo on bare QUIC.

use std::time::Duration;

use wavry_transport::session::{Close, Session};

use super::Common;
use crate::{
    Better, Error, Report, Row,
    measure::{self, median},
    progress,
    raw::Baseline,
    target::Target,
};

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Measure bare QUIC as well, in turns
    #[arg(long)]
    baseline: bool,
    /// Times each measurement is taken on each side; the medians are reported
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Milliseconds that one measurement takes
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    round_ms: u64,
    #[command(flatten)]
    pub(super) common: Common,
}

/// The path has two QUIC connections where the baseline has one, each with its own encryption and
/// wake-ups: half the baseline says that neither costs more than bare QUIC does.
const GOAL: f64 = 0.5;

/// One figure: name, unit, and which way it is good.
const FIGURES: [(&str, &str, Better); 6] = [
    ("stream_round_trip_p50", "ms", Better::Less),
    ("stream_round_trip_p99", "ms", Better::Less),
    ("datagram_round_trip_p50", "ms", Better::Less),
    ("datagram_round_trip_p99", "ms", Better::Less),
    ("stream_throughput", "bytes/s", Better::More),
    ("datagram_rate", "datagrams/s", Better::More),
];

type Figures = [f64; FIGURES.len()];

pub(super) async fn run(args: &Args) -> Result<Report, Error> {
    let target = Target::open(&args.common.target).await?;
    let session = target.connect().await?;
    let baseline = args.baseline.then(Baseline::start).transpose()?;
    let bare = match &baseline {
        Some(baseline) => Some(baseline.connect().await?),
        None => None,
    };

    let round = Duration::from_millis(args.round_ms);
    // Neither side's first packets, windows or threads are part of the measure.
    let warm_up = round.min(Duration::from_millis(300));
    round_of(&session, bare.as_ref(), warm_up).await?;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for number in 1..=args.rounds {
        progress(&format!("round {number} of {}", args.rounds));
        let (wavry, baseline) = round_of(&session, bare.as_ref(), round).await?;
        ours.push(wavry);
        theirs.extend(baseline);
    }
    session.close(Close::default());
    drop(bare);
    target.stop().await?;

    let middle =
        |rounds: &[Figures], figure: usize| median(rounds.iter().map(|r| r[figure]).collect());
    let results = FIGURES
        .iter()
        .enumerate()
        .map(|(figure, &(name, unit, better))| {
            let wavry = middle(&ours, figure);
            match theirs.is_empty() {
                true => Row::plain(name, unit, wavry),
                false => Row::compared(name, unit, better, wavry, middle(&theirs, figure), GOAL),
            }
        });
    Ok(Report {
        scenario: "echo",
        results: results.collect(),
        failures: Vec::new(),
    })
}

/// Every figure once on each side, taking turns figure by figure.
async fn round_of<W: Session, B: Session>(
    wavry: &W,
    baseline: Option<&B>,
    duration: Duration,
) -> Result<(Figures, Option<Figures>), Error> {
    let mut figures: (Figures, Figures) = Default::default();
    for kind in [
        Kind::StreamTimes,
        Kind::DatagramTimes,
        Kind::Throughput,
        Kind::Rate,
    ] {
        kind.measure(wavry, duration, &mut figures.0).await?;
        if let Some(baseline) = baseline {
            kind.measure(baseline, duration, &mut figures.1).await?;
        }
    }
    Ok((figures.0, baseline.map(|_| figures.1)))
}

#[derive(Clone, Copy)]
enum Kind {
    StreamTimes,
    DatagramTimes,
    Throughput,
    Rate,
}

impl Kind {
    async fn measure<S: Session>(
        self,
        session: &S,
        duration: Duration,
        figures: &mut Figures,
    ) -> Result<(), Error> {
        match self {
            Self::StreamTimes => {
                let times = measure::stream_round_trips(session, duration).await?;
                figures[0] = times.percentile(50);
                figures[1] = times.percentile(99);
            }
            Self::DatagramTimes => {
                let times = measure::datagram_round_trips(session, duration).await?;
                figures[2] = times.percentile(50);
                figures[3] = times.percentile(99);
            }
            Self::Throughput => figures[4] = measure::stream_throughput(session, duration).await?,
            Self::Rate => figures[5] = measure::datagram_rate(session, duration).await?,
        }
        Ok(())
    }
}
