use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Machine {
    name: Option<String>,
    mac: Mac,
    profile: Option<String>,
    labels: Vec<String>,
    hardware: Option<Hardware>,
}

impl Selectable for &Machine {
    fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
    fn mac(&self) -> Mac {
        self.mac
    }
    fn profile(&self) -> Option<&str> {
        self.profile.as_deref()
    }
    fn has_label(&self, label: &str) -> bool {
        self.labels.iter().any(|its| its == label)
    }
    fn hardware(&self) -> Option<&Hardware> {
        self.hardware.as_ref()
    }
}

/// n1 to n40, every third a GPU's, every other web's; and one without a name.
fn machines() -> Vec<Machine> {
    let named = (1..=40u8).map(|n| Machine {
        name: Some(format!("n{n}")),
        mac: Mac([2, 0, 0, 0, 0, n]),
        profile: Some(if n % 2 == 0 { "web" } else { "db" }.into()),
        labels: if n % 3 == 0 { vec!["gpu".into()] } else { Vec::new() },
        hardware: (n <= 4).then(|| Hardware {
            vendor: Some("Dell Inc.".into()),
            memory: Some(u64::from(n) << 36),
            ..Hardware::default()
        }),
    });
    let mac = Mac([2, 0, 0, 0, 1, 0]);
    let unnamed = Machine { name: None, mac, profile: None, labels: Vec::new(), hardware: None };
    named.chain([unnamed]).collect()
}

fn chosen(text: &str) -> Result<Vec<u8>, String> {
    let selector: Selector = text.parse().map_err(|error: SelectorError| error.to_string())?;
    let machines = machines();
    let chosen = selector.choose(&machines).map_err(|nothing| nothing.to_string())?;
    Ok(chosen.iter().map(|m| if m.name.is_some() { m.mac.0[5] } else { 0 }).collect())
}

#[test]
fn each_way_to_name_machines() {
    let range = |first: u8, last: u8| (first..=last).collect::<Vec<_>>();
    assert_eq!(chosen("n1"), Ok(vec![1]));
    assert_eq!(chosen("N1 n3,n2"), Ok(vec![1, 2, 3]), "in the machines' order, without regard to case");
    assert_eq!(chosen("n[1-40]"), Ok(range(1, 40)));
    assert_eq!(chosen("n[1-3,7],n2"), Ok(vec![1, 2, 3, 7]), "each once");
    assert_eq!(chosen("n[1-2][0-1]"), Ok(vec![10, 11, 20, 21]));
    assert_eq!(chosen("label=gpu").map(|all| all.len()), Ok(13));
    assert_eq!(chosen("profile=web,label=gpu").map(|all| all.len()), Ok(20 + 7));
    assert_eq!(chosen("02:00:00:00:01:00"), Ok(vec![0]));
    assert_eq!(chosen("02-00-00-00-00-05"), Ok(vec![5]));
    assert_eq!(chosen("all").map(|all| all.len()), Ok(41));
    assert_eq!(chosen("fact=vendor:dell*"), Ok(vec![1, 2, 3, 4]));
    assert_eq!(chosen("n9,fact=memory:>=192G"), Ok(vec![3, 4, 9]));
    let by_mac = "fact=memory:<=64G".parse::<Selector>().unwrap().without_facts(&machines()).unwrap();
    assert!(!by_mac.goes_by_facts());
    assert_eq!(by_mac.choose(&machines()).unwrap().iter().map(|m| m.mac.0[5]).collect::<Vec<_>>(), [1]);
}

#[test]
fn what_names_nothing_says_so() {
    for (text, words) in [
        ("", "no machine is named"),
        (" , ", "no machine is meant by `,`"),
        ("n41", "no machine is meant by `n41`"),
        ("n[39-42]", "no machine is meant by `n41`, no machine is meant by `n42`"),
        ("n1,label=gpx", "no machine is meant by `label=gpx`"),
        ("profile=x", "no machine is meant by `profile=x`"),
        ("02:00:00:00:09:00", "no machine is meant by `02:00:00:00:09:00`"),
        ("n[1-2", "a bracket is not closed"),
        ("n[]", "in brackets stand numbers"),
        ("n[2-1]", "from the smaller number"),
        ("n[01-2]", "as many digits"),
        ("n[1-999999999]", "more than 32768"),
        ("n[0-9][0-9][0-9][0-9][0-9]", "more than 32768"),
        ("label=", "behind `=` stands a name"),
        ("rack=1", "before `=` stands label, profile or fact"),
        ("fact=vendor:HPE", "no machine is meant by `fact=vendor:HPE`"),
        ("fact=vendor", "a fact is KEY:VALUE"),
        ("fact=colour:red", "a fact's key is vendor"),
        ("fact=memory:64", "stands a size"),
        ("fact=cores:many", "stands a number"),
        ("n1;n2", "a name has letters"),
        ("\u{1b}[2J", "`^[[2J`"),
    ] {
        let error = chosen(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
    assert_eq!("x".repeat(TEXT_MAX + 1).parse::<Selector>(), Err(SelectorError::Long));
    let none: [&Machine; 0] = [];
    assert_eq!("all".parse::<Selector>().unwrap().choose(none), Err(Nothing(vec!["all".into()])));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is written, it is read or refused, and what it stands for is bounded.
    #[test]
    fn any_text_is_read_or_refused(text in "[\\PCn\\[\\]0-9,=\\- ]{0,40}") {
        if let Ok(selector) = text.parse::<Selector>() {
            prop_assert!(selector.names.len() <= NAMES_MAX);
            let machines = machines();
            if let Ok(chosen) = selector.choose(&machines) {
                prop_assert!(!chosen.is_empty());
                prop_assert!(chosen.is_sorted_by_key(|m| machines.iter().position(|other| other == *m)));
            }
        }
    }

    /// A range in brackets is the names that it stands for, one by one.
    #[test]
    fn a_range_is_its_names(first in 0u32..2000, more in 0u32..50, width in 0usize..5, prefix in "[a-z]{1,3}") {
        let (last, digits) = (first + more, |n: u32| n.to_string().len());
        let padded = width > 0 && digits(last) <= width;
        let width = if padded { width } else { 0 };
        let term = format!("{prefix}[{first:0width$}-{last:0width$}]");
        let names: BTreeSet<String> = (first..=last).map(|n| format!("{prefix}{n:0width$}")).collect();
        prop_assert_eq!(term.parse::<Selector>().unwrap().names, names);
    }

    /// Any selection, written out machine by machine, selects the same.
    #[test]
    fn what_is_chosen_is_what_was_named(picked in proptest::collection::btree_set(1u8..=40, 1..20)) {
        let text = picked.iter().map(|n| format!("n{n}")).collect::<Vec<_>>().join(",");
        prop_assert_eq!(chosen(&text), Ok(picked.into_iter().collect()));
    }
}
