use proptest::prelude::*;

use super::*;

fn read(toml: &str) -> Result<Power, String> {
    let table: PowerTable = toml::from_str(toml).map_err(|error| error.message().to_owned())?;
    Power::try_from(table).map_err(|fault| fault.to_string())
}

#[test]
fn each_way_is_written_as_it_is_read() {
    for (toml, bmc) in [
        ("redfish = \"https://bmc1\"\ncredentials = \"rack\"\n", Some("https://bmc1")),
        ("redfish = \"http://10.0.0.7:8000/redfish/v1/Systems/1\"\n", None),
        ("redfish = \"https://[fd00::7]:8443\"\n", None),
        ("ipmi = \"10.0.0.7\"\ncredentials = \"rack\"\n", Some("10.0.0.7:623")),
        ("ipmi = \"bmc-{name}.example:6230\"\n", Some("bmc-n1.example:6230")),
        ("ipmi = \"[fd00::7]:6230\"\n", None),
        ("wol = true\n", None),
        ("command = [\"/bin/pdu\", \"{name}\", \"{action}\"]\n", None),
    ] {
        let power = read(toml).unwrap();
        assert_eq!(toml::to_string(&PowerTable::from(power.clone())).unwrap(), toml);
        let json = serde_json::to_string(&power).unwrap();
        assert_eq!(serde_json::from_str::<Power>(&json).unwrap(), power);
        if bmc.is_some() {
            assert_eq!(power.bmc("n1").as_deref(), bmc);
        }
    }
}

#[test]
fn what_is_no_way_is_said() {
    for (toml, words) in [
        ("", "power says no way"),
        ("wol = false", "switches nothing"),
        ("wol = true\nipmi = \"a\"", "several ways"),
        ("wol = true\ncredentials = \"rack\"", "only BMCs ask for credentials"),
        ("ipmi = \"-H\"", "`-H` is no BMC's host"),
        ("ipmi = \"a b\"", "is no BMC's host"),
        ("ipmi = \"a:0\"", "is no BMC's host"),
        ("ipmi = \"a\"\ncredentials = \"a b\"", "can't be the name of credentials"),
        ("redfish = \"bmc1\"", "`bmc1` is no BMC's URL"),
        ("redfish = \"ftp://bmc1\"", "is no BMC's URL"),
        ("redfish = \"https://\"", "names no host"),
        ("redfish = \"https://a/../b\"", "a path that no BMC has"),
        ("redfish = \"https://a/b?c\"", "a path that no BMC has"),
        ("command = []", "no command"),
        ("command = [\"pdu\"]", "by its whole path"),
        ("command = [\"/bin/a\\n\"]", "no command"),
        ("reboot = true", "unknown field `reboot`"),
    ] {
        let error = read(toml).unwrap_err();
        assert!(error.contains(words), "{toml}: {error}");
    }
    let error = read("redfish = \"https://root:hunter2@bmc1\"").unwrap_err();
    assert!(error.contains("contains a user") && !error.contains("hunter2"), "{error}");
}

#[test]
fn what_is_changed_of_a_way_leaves_the_rest() {
    let table = |toml: &str| toml::from_str::<PowerTable>(toml).unwrap();
    let before = table("redfish = \"https://a\"\ncredentials = \"rack\"");
    let over = |toml: &str| table(toml).over(before.clone());
    assert_eq!(over("credentials = \"other\""), table("redfish = \"https://a\"\ncredentials = \"other\""));
    assert_eq!(over("redfish = \"https://b\""), table("redfish = \"https://b\"\ncredentials = \"rack\""));
    assert_eq!(over("ipmi = \"b\""), table("ipmi = \"b\"\ncredentials = \"rack\""));
    assert_eq!(over("wol = true"), table("wol = true"));
}

proptest! {
    /// Nobody's URL makes it panic, and what is taken is the same once it was written.
    #[test]
    fn a_url_that_is_taken_is_itself(text in "(https?://)?[a-z0-9:/\\[\\].@{}-]{0,40}") {
        if let Ok(url) = text.parse::<BmcUrl>() {
            prop_assert_eq!(url.to_string().parse::<BmcUrl>().unwrap(), url);
        }
    }
}
