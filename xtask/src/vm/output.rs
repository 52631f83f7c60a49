//! What the console of a virtual machine says: the marks of init.sh, and between them the output of programs.

/// The output of one step of the plan.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) name: String,
    pub(super) lines: Vec<String>,
    /// The exit status; `None` if the machine ended before.
    pub(super) status: Option<i32>,
}

/// The sections so far.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) sections: Vec<Section>,
    /// What was said outside of them: the kernel's last words, for example.
    pub(super) rest: Vec<String>,
}

impl Output {
    pub(super) fn read(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("@@ begin ") {
            self.sections.push(Section { name: name.to_owned(), ..Section::default() });
            return;
        }
        let open = self.sections.last_mut().filter(|section| section.status.is_none());
        match (open, line.strip_prefix("@@ end ").and_then(|end| end.rsplit_once(' '))) {
            (Some(section), Some((name, status))) if section.name == name => {
                section.status = Some(status.parse().unwrap_or(-1));
            }
            (Some(section), _) => section.lines.push(line.to_owned()),
            (None, _) => self.rest.push(line.to_owned()),
        }
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| section.name == name)
    }
}

/// What became of one test.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) name: String,
    pub(super) passed: bool,
}

impl Section {
    /// The tests of a libtest executable, in the order in which they ended.
    pub(super) fn tests(&self) -> Vec<Test> {
        // The programs that a test starts may write between its name and what became of it.
        let mut name = None;
        let mut tests = Vec::new();
        for line in &self.lines {
            let begun = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... "));
            let outcome = if let Some((test, outcome)) = begun {
                name = Some(test);
                outcome
            } else {
                line
            };
            let passed = match outcome.trim_end() {
                "ok" => true,
                "FAILED" => false,
                _ => continue,
            };
            tests.extend(name.take().map(|name| Test { name: name.to_owned(), passed }));
        }
        tests
    }

    /// The tests that it was about to run.
    pub(super) fn announced(&self) -> Option<usize> {
        self.lines.iter().find_map(|line| line.strip_prefix("running ")?.split_once(" test")?.0.parse().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_lie_between_their_marks() {
        let mut output = Output::default();
        let console = "noise\n@@ begin check\n{\n@@ end other 0\n}\n\n@@ end check 0\nmore\n@@ begin a b\n\
                       running 2 tests\ntest x::y ... ok\ntest z ... noise of a program\nFAILED\ntest w ... ignored\nok it says";
        console.lines().for_each(|line| output.read(line));
        assert_eq!(output.rest, ["noise", "more"]);
        let check = output.section("check").unwrap();
        assert_eq!((check.lines.join(""), check.status), ("{@@ end other 0}".to_owned(), Some(0)));
        let tests = output.section("a b").unwrap();
        assert_eq!(tests.status, None, "the machine ended");
        assert_eq!(tests.announced(), Some(2));
        let test = |name: &str, passed| Test { name: name.to_owned(), passed };
        assert_eq!(tests.tests(), [test("x::y", true), test("z", false)]);
    }
}
