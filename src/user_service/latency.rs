//! How long answers take.

use std::fs::File;
use std::io::Read;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

/// The longest latency: longer ones are refused, and those drawn from a distribution are cut.
pub const MAX_LATENCY: Duration = Duration::from_mins(10);
/// The largest file of samples, in bytes: half a million of them and more.
pub const MAX_SAMPLES_BYTES: u64 = 4 << 20;
/// The widest log-normal distribution: one call in forty takes 20,000 times the median.
const MAX_SIGMA: f64 = 5.0;

/// How long a user service takes for its answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Latency {
    /// The same for each.
    Fixed(Duration),
    /// Log-normal, as latencies often are: half of the answers take no longer than `median`, one in
    /// forty longer than `median * e^(2 sigma)`.
    LogNormal {
        /// Half of the answers take no longer.
        median: Duration,
        /// How wide it is: the standard deviation of the latency's logarithm. With 0 all are the same.
        sigma: f64,
    },
    /// One of these for each, drawn at random. None at all: no latency.
    Samples(Arc<[Duration]>),
}

/// Why a text, or a file of samples, tells no latency.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidLatency(String);

impl Default for Latency {
    fn default() -> Self {
        Self::Fixed(Duration::ZERO)
    }
}

impl FromStr for Latency {
    type Err = InvalidLatency;

    /// Milliseconds (`50`), `lognormal:MEDIAN:SIGMA` with the median in milliseconds, or `file:PATH`
    /// of samples.
    fn from_str(text: &str) -> Result<Self, InvalidLatency> {
        if let Some(path) = text.strip_prefix("file:") {
            let in_file = |error| InvalidLatency(format!("{path}: {error}"));
            let file = File::open(path).map_err(|error| in_file(error.to_string()))?;
            return Self::read_samples(file).map_err(|error| in_file(error.to_string()));
        }
        let Some(parameters) = text.strip_prefix("lognormal:") else {
            return milliseconds(text).map(Self::Fixed).ok_or_else(|| {
                let most = MAX_LATENCY.as_millis();
                InvalidLatency(format!(
                    "accepted: 0 to {most} (milliseconds), lognormal:MEDIAN:SIGMA or file:PATH"
                ))
            });
        };
        parameters
            .split_once(':')
            .and_then(|(median, sigma)| {
                let sigma = sigma.parse().ok().filter(|sigma| (0.0..=MAX_SIGMA).contains(sigma))?;
                Some(Self::LogNormal { median: milliseconds(median)?, sigma })
            })
            .ok_or_else(|| {
                let most = MAX_LATENCY.as_millis();
                InvalidLatency(format!(
                    "accepted: lognormal:MEDIAN:SIGMA with a median of 0 to {most} (milliseconds) and \
                     a sigma of 0 to {MAX_SIGMA}, e.g. lognormal:50:0.5"
                ))
            })
    }
}

impl Latency {
    /// Samples in milliseconds, one a line, empty lines left out; as many as [`MAX_SAMPLES_BYTES`]
    /// hold. The error names the line that is none.
    pub fn read_samples(from: impl Read) -> Result<Self, InvalidLatency> {
        let mut text = String::new();
        from.take(MAX_SAMPLES_BYTES + 1)
            .read_to_string(&mut text)
            .map_err(|error| InvalidLatency(error.to_string()))?;
        if text.len() as u64 > MAX_SAMPLES_BYTES {
            let most = MAX_SAMPLES_BYTES;
            return Err(InvalidLatency(format!("too large; accepted: up to {most} bytes")));
        }
        let lines = text.lines().map(str::trim).enumerate().filter(|(_, line)| !line.is_empty());
        let samples = lines
            .map(|(before, line)| milliseconds(line).ok_or_else(|| bad_line(before + 1, line)))
            .collect::<Result<Arc<[Duration]>, _>>()?;
        if samples.is_empty() {
            return Err(InvalidLatency("has no sample; accepted: milliseconds, one a line".into()));
        }
        Ok(Self::Samples(samples))
    }

    /// The latency of one call.
    pub(super) fn draw(&self, random: &mut impl Rng) -> Duration {
        match self {
            Self::Fixed(latency) => *latency,
            Self::LogNormal { median, sigma } => {
                let normal: f64 = random.sample(StandardNormal);
                let seconds = median.as_secs_f64() * (sigma * normal).exp();
                Duration::from_secs_f64(seconds.min(MAX_LATENCY.as_secs_f64()))
            }
            Self::Samples(samples) => samples.choose(random).copied().unwrap_or_default(),
        }
    }
}

fn milliseconds(text: &str) -> Option<Duration> {
    let milliseconds: f64 = text.parse().ok()?;
    let seconds = milliseconds / 1000.0;
    (0.0..=MAX_LATENCY.as_secs_f64()).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}

fn bad_line(number: usize, line: &str) -> InvalidLatency {
    // The line may be anything, a whole file that is no text of lines for instance.
    let start: String = line.chars().take(40).collect();
    let most = MAX_LATENCY.as_millis();
    InvalidLatency(format!("line {number}: {start:?}; accepted: 0 to {most} (milliseconds)"))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn parse(text: &str) -> Result<Latency, String> {
        text.parse().map_err(|error: InvalidLatency| error.to_string())
    }

    fn read(text: &str) -> Result<Latency, String> {
        Latency::read_samples(text.as_bytes()).map_err(|error| error.to_string())
    }

    fn drawn(latency: &Latency, seed: u64) -> Vec<Duration> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..10_000).map(|_| latency.draw(&mut random)).collect()
    }

    #[test]
    fn latencies_are_read_from_text() {
        let ms = Duration::from_millis;
        assert_eq!(parse("0"), Ok(Latency::default()));
        assert_eq!(parse("50"), Ok(Latency::Fixed(ms(50))));
        assert_eq!(parse("0.5"), Ok(Latency::Fixed(Duration::from_micros(500))));
        assert_eq!(parse("600000"), Ok(Latency::Fixed(MAX_LATENCY)));
        let log_normal = Latency::LogNormal { median: ms(50), sigma: 0.5 };
        assert_eq!(parse("lognormal:50:0.5"), Ok(log_normal));
    }

    #[test]
    fn what_is_no_latency_is_refused_with_what_is_accepted() {
        for bad in ["", "-1", "600001", "inf", "NaN", "50ms", "normal:50:1"] {
            let error = parse(bad).unwrap_err();
            assert_eq!(
                error,
                "accepted: 0 to 600000 (milliseconds), lognormal:MEDIAN:SIGMA or file:PATH"
            );
        }
        for bad in
            ["lognormal:", "lognormal:50", "lognormal:50:-1", "lognormal:50:NaN", "lognormal:x:1"]
        {
            let error = parse(bad).unwrap_err();
            assert!(error.starts_with("accepted: lognormal:MEDIAN:SIGMA with"), "{error}");
        }
        let error = parse("file:/nowhere/at/all").unwrap_err();
        assert!(error.starts_with("/nowhere/at/all: No such file"), "{error}");
    }

    #[test]
    fn samples_are_milliseconds_one_a_line() {
        let ms = Duration::from_millis;
        assert_eq!(read("1\n\n 20 \r\n3"), Ok(Latency::Samples([ms(1), ms(20), ms(3)].into())));
        for (text, expected) in [
            ("", "has no sample"),
            ("\n\n", "has no sample"),
            ("1\n\nlatency\n", "line 3: \"latency\"; accepted: 0 to 600000"),
            ("1\n2,5", "line 2: \"2,5\""),
            ("-3", "line 1: \"-3\""),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        assert!(Latency::read_samples(&[b'1', 0xff][..]).is_err(), "no UTF-8");
        let error = Latency::read_samples(std::io::repeat(b'1')).unwrap_err().to_string();
        assert_eq!(error, "too large; accepted: up to 4194304 bytes");
    }

    #[test]
    fn a_seed_draws_the_same_again() {
        let latency = Latency::LogNormal { median: Duration::from_millis(50), sigma: 0.5 };
        assert_eq!(drawn(&latency, 1), drawn(&latency, 1));
        assert_ne!(drawn(&latency, 1), drawn(&latency, 2));
    }

    #[test]
    fn a_log_normal_latency_has_its_median_and_its_width() {
        let latency = Latency::LogNormal { median: Duration::from_millis(50), sigma: 0.5 };
        let mut all = drawn(&latency, 1);
        all.sort();
        let at = |share: usize| all[all.len() * share / 1000].as_secs_f64() * 1e3;
        assert!((48.0..52.0).contains(&at(500)), "the median is {} ms", at(500));
        // e^(2 sigma) times the median is at 97.7 %: 50 ms * e = 136 ms.
        assert!((125.0..147.0).contains(&at(977)), "97.7 % is {} ms", at(977));
    }

    #[test]
    fn samples_are_drawn_from_all_of_them_and_nothing_else() {
        let samples: Arc<[Duration]> = (1..=10).map(Duration::from_millis).collect();
        let mut all = drawn(&Latency::Samples(samples.clone()), 1);
        all.sort();
        all.dedup();
        assert_eq!(all, samples[..]);
    }

    #[test]
    fn no_draw_is_longer_than_the_longest() {
        let latency = Latency::LogNormal { median: MAX_LATENCY, sigma: f64::INFINITY };
        assert!(drawn(&latency, 1).into_iter().all(|latency| latency <= MAX_LATENCY));
        assert_eq!(drawn(&Latency::Samples([].into()), 1)[0], Duration::ZERO);
    }
}
