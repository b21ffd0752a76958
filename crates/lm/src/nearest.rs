//! Names that are near to one that was mistyped. Knows nothing of what they name.

/// At most three of `names`, the nearest to `given` first.
pub fn nearest<'a>(names: impl IntoIterator<Item = &'a str>, given: &str) -> Vec<&'a str> {
    let mut names: Vec<&str> = names.into_iter().collect();
    names.sort_by_key(|n| (distance(n, given), *n));
    names.truncate(3);
    names
}

/// Changes of a letter from one name to the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = i;
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (corner + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            corner = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_nearest_come_first() {
        assert_eq!(super::nearest(["iters", "batch_size", "seed", "beta"], "batchsize")[0], "batch_size");
        assert_eq!(super::nearest(["b", "a"], "a"), ["a", "b"]);
    }
}
