//! `strftime_now`: the date in a template.

use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// `time` written by a C `strftime` format, in UTC and English.
pub(super) fn strftime(time: SystemTime, format: &str) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let seconds = since.as_secs();
    let (days, second) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days as i64);
    let weekday = ((days + 4) % 7) as usize;
    let yearday = (1..month).map(|m| month_days(year, m)).sum::<i64>() + day;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[weekday]);

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut letter = chars.next();
        let plain = letter == Some('-');
        if plain {
            letter = chars.next();
        }
        let mut number = |x: i64, width: usize| _ = write!(out, "{x:0w$}", w = if plain { 0 } else { width });
        match letter {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('j') => number(yearday, 3),
            Some('H') => number(hour as i64, 2),
            Some('I') => number(hour12 as i64, 2),
            Some('M') => number(minute as i64, 2),
            Some('S') => number(second as i64, 2),
            Some('f') => number(since.subsec_micros().into(), 6),
            Some('s') => number(seconds as i64, 0),
            Some('u') => number(if weekday == 0 { 7 } else { weekday as i64 }, 0),
            Some('w') => number(weekday as i64, 0),
            Some('e') => _ = write!(out, "{day:2}"),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&strftime(time, "%Y-%m-%d")),
            Some('T' | 'X') => out.push_str(&strftime(time, "%H:%M:%S")),
            Some('R') => out.push_str(&strftime(time, "%H:%M")),
            Some('D' | 'x') => out.push_str(&strftime(time, "%m/%d/%y")),
            Some('c') => out.push_str(&strftime(time, "%a %b %e %H:%M:%S %Y")),
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('%') => out.push('%'),
            Some('z' | 'Z') => {}
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

fn month_days(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Year, month and day of a day after 1970-01-01, in eras of 400 years that begin in March.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let format = "%a %A %d %b %B %Y %H:%M:%S %j %-d %I %p";
        assert_eq!(strftime(at(0), format), "Thu Thursday 01 Jan January 1970 00:00:00 001 1 12 AM");
        assert_eq!(strftime(at(1_709_164_799), format), "Wed Wednesday 28 Feb February 2024 23:59:59 059 28 11 PM");
        assert_eq!(strftime(at(1_709_164_800), "%F %T"), "2024-02-29 00:00:00");
        assert_eq!(strftime(at(4_107_542_400), "%F %a"), "2100-03-01 Mon");
    }
}
