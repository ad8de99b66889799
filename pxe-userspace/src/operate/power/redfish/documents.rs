//! What is read of a BMC's documents. Nothing in them is trusted: a path that they name is one on the same service, and
//! everything is bounded. Pure.

use serde_json::Value;

use super::super::{BootOnce, From, State, Verb};

/// Members of a collection, and values of a list, that are looked at.
const LIST_MAX: usize = 256;
/// Characters of a path.
const PATH_MAX: usize = 512;

/// A system, as far as it matters here (ComputerSystem).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct System {
    pub(super) state: State,
    /// Where orders go (`#ComputerSystem.Reset`).
    pub(super) reset_target: String,
    /// The values of ResetType that it allows; none where it does not say.
    pub(super) resets: Vec<String>,
    /// Where it says so.
    pub(super) action_info: Option<String>,
    /// The values of BootSourceOverrideTarget that it allows; none where it does not say.
    targets: Vec<String>,
    pub(super) etag: Option<String>,
}

impl System {
    /// The best ResetType for what is wanted. One that only presses the button toggles, and is the last choice.
    pub(super) fn reset(&self, verb: Verb) -> Option<&'static str> {
        let choices: &[&'static str] = match verb {
            Verb::On => &["On", "ForceOn", "PushPowerButton"],
            Verb::Off => &["ForceOff", "PushPowerButton", "GracefulShutdown"],
            Verb::Cycle | Verb::Status => &[],
        };
        let first = choices.first().copied();
        match self.resets.is_empty() {
            true => first,
            false => choices.iter().find(|choice| self.resets.iter().any(|its| its == **choice)).copied(),
        }
    }

    /// Targets of a boot override, the nearest to what is wanted first.
    pub(super) fn boot_targets(&self, boot: BootOnce) -> Vec<(&'static str, From)> {
        let wanted: &[(&'static str, From)] = match boot.from {
            From::Http => &[("UefiHttp", From::Http), ("Pxe", From::Pxe)],
            From::Pxe => &[("Pxe", From::Pxe)],
        };
        let allowed = |(target, _): &&(&'static str, From)| {
            self.targets.is_empty() || self.targets.iter().any(|its| its == target)
        };
        let nearest: Vec<_> = wanted.iter().filter(allowed).copied().collect();
        // A list that has neither may be incomplete: the BMC will say so.
        if nearest.is_empty() { wanted.to_vec() } else { nearest }
    }
}

pub(super) fn system(document: &Value, etag: Option<String>) -> Result<System, String> {
    let state = match document["PowerState"].as_str() {
        // On its way counts as what it is going to leave: the wait goes on.
        Some("On" | "PoweringOff") => State::On,
        Some("Off" | "PoweringOn") => State::Off,
        Some(_) | None => State::Unknown,
    };
    let reset = &document["Actions"]["#ComputerSystem.Reset"];
    let target = path(&reset["target"]).ok_or("its system has no #ComputerSystem.Reset")?;
    let etag = etag.or_else(|| document["@odata.etag"].as_str().map(str::to_owned));
    Ok(System {
        state,
        reset_target: target,
        resets: list(&reset["ResetType@Redfish.AllowableValues"]),
        action_info: path(&reset["@Redfish.ActionInfo"]),
        targets: list(&document["Boot"]["BootSourceOverrideTarget@Redfish.AllowableValues"]),
        etag: etag.filter(|etag| etag.len() <= PATH_MAX),
    })
}

/// The values of ResetType that an ActionInfo has.
pub(super) fn allowed_by_action_info(document: &Value) -> Vec<String> {
    let parameters = document["Parameters"].as_array().map_or(&[][..], Vec::as_slice);
    let reset = parameters.iter().take(LIST_MAX).find(|parameter| parameter["Name"] == "ResetType");
    reset.map(|parameter| list(&parameter["AllowableValues"])).unwrap_or_default()
}

/// The paths of a collection's members.
pub(super) fn members(document: &Value) -> Result<Vec<String>, String> {
    let members = document["Members"].as_array().ok_or("its list of systems has no Members")?;
    members
        .iter()
        .take(LIST_MAX)
        .map(|member| path(&member["@odata.id"]).ok_or_else(|| "a system without a path".to_owned()))
        .collect()
}

/// Where sessions are opened, by the service root.
pub(super) fn sessions(root: &Value) -> Option<String> {
    path(&root["Links"]["Sessions"]["@odata.id"])
}

/// What a BMC says of an error (section 8.6): of the extended information the messages, else what it says at all.
pub(super) fn words(body: &[u8]) -> String {
    let Ok(document) = serde_json::from_slice::<Value>(body) else {
        let text = String::from_utf8_lossy(body);
        // A page is no message.
        return if text.trim_start().starts_with('<') { String::new() } else { text.into_owned() };
    };
    let error = &document["error"];
    let more = error["@Message.ExtendedInfo"].as_array().map_or(&[][..], Vec::as_slice);
    let messages: Vec<&str> = more.iter().take(3).filter_map(|info| info["Message"].as_str()).collect();
    match (messages.is_empty(), error["message"].as_str()) {
        (false, _) => messages.join(" "),
        (true, Some(message)) => message.to_owned(),
        (true, None) => String::new(),
    }
}

/// A path on the same service: nobody sends a token elsewhere because a document says so.
fn path(value: &Value) -> Option<String> {
    let value = value.as_str()?;
    let value = value.strip_prefix("/").is_some_and(|rest| !rest.starts_with('/')).then_some(value)?;
    let sound = value.len() <= PATH_MAX && value.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    sound.then(|| value.to_owned())
}

fn list(value: &Value) -> Vec<String> {
    let values = value.as_array().map_or(&[][..], Vec::as_slice);
    let words = values.iter().take(LIST_MAX).filter_map(|value| value.as_str());
    words.filter(|word| word.len() <= 64).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::Mode;
    use super::*;

    fn read(power: &str, resets: &[&str], targets: &[&str]) -> System {
        let document = json!({
            "PowerState": power,
            "Boot": { "BootSourceOverrideTarget@Redfish.AllowableValues": targets },
            "Actions": { "#ComputerSystem.Reset": {
                "target": "/redfish/v1/Systems/1/Actions/ComputerSystem.Reset",
                "ResetType@Redfish.AllowableValues": resets,
            } },
        });
        system(&document, None).unwrap()
    }

    #[test]
    fn orders_are_what_the_bmc_allows() {
        let reset = |resets: &[&str], verb| read("Off", resets, &[]).reset(verb);
        assert_eq!(reset(&["On", "ForceOff"], Verb::On), Some("On"));
        assert_eq!(reset(&["ForceOn", "GracefulShutdown"], Verb::On), Some("ForceOn"));
        assert_eq!(reset(&["GracefulShutdown", "PushPowerButton"], Verb::Off), Some("PushPowerButton"));
        assert_eq!(reset(&["Nmi"], Verb::Off), None);
        assert_eq!(reset(&[], Verb::Off), Some("ForceOff"), "it does not say");
        let http = BootOnce { from: From::Http, mode: Mode::Uefi };
        let targets = |targets: &[&str]| -> Vec<&str> {
            read("Off", &[], targets).boot_targets(http).into_iter().map(|(target, _)| target).collect()
        };
        assert_eq!(targets(&["None", "Pxe", "UefiHttp"]), ["UefiHttp", "Pxe"]);
        assert_eq!(targets(&["None", "Pxe"]), ["Pxe"]);
        assert_eq!(targets(&["None"]), ["UefiHttp", "Pxe"]);
    }

    #[test]
    fn states_on_their_way_are_not_there_yet() {
        let states = ["On", "Off", "PoweringOn", "PoweringOff", "Paused"].map(|s| read(s, &[], &[]).state);
        assert_eq!(states, [State::On, State::Off, State::Off, State::On, State::Unknown]);
    }

    #[test]
    fn nobody_is_led_elsewhere() {
        for elsewhere in ["https://evil/", "//evil/x", "x", "/a b", "/a\r\nHost: b", "/\u{e9}", "/\\evil"] {
            assert_eq!(path(&json!(elsewhere)), None, "{elsewhere}");
        }
        assert_eq!(path(&json!("/redfish/v1/Systems/1")).as_deref(), Some("/redfish/v1/Systems/1"));
        assert!(system(&json!({ "PowerState": "On" }), None).is_err());
        assert!(members(&json!({ "Members": [{}] })).is_err());
    }

    #[test]
    fn errors_are_read_whatever_they_are() {
        let extended = json!({ "error": { "message": "see below", "@Message.ExtendedInfo": [
            { "Message": "The value is bad." }, { "Message": "Try another." } ] } });
        assert_eq!(words(extended.to_string().as_bytes()), "The value is bad. Try another.");
        assert_eq!(words(br#"{"error": {"message": "no"}}"#), "no");
        assert_eq!(words(b"<!doctype html><h1>500</h1>"), "");
        assert_eq!(words(b"busy"), "busy");
        assert_eq!(words(b"[1]"), "");
    }
}
