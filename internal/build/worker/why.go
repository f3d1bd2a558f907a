package worker

import (
	"regexp"
	"strings"

	"drover/internal/fault"
)

var (
	reNoMatch  = regexp.MustCompile(`(?m)No match for argument: (.+?)\s*$`)
	reNothing  = regexp.MustCompile(`(?m)nothing provides (.+?) needed by (\S+)`)
	reProblem  = regexp.MustCompile(`(?m)^\s*(?:Problem(?: \d+)?: |- )(.+)$`)
	reDownload = regexp.MustCompile(`(?m)(Cannot download|Failed to download|Curl error|Status code: \d+|All mirrors were tried|No more mirrors|No space left|Errors during downloading|Failed to synchronize).*$`)
)

// unresolved reads from dnf's words what could not be installed, and who asked for it.
func unresolved(out, asker string) error {
	out = unescape(out)
	fix := "add a repository that has it to the build tag, or correct the BuildRequires"
	for _, m := range reNoMatch.FindAllStringSubmatch(out, 1) {
		return fault.Invalid("deps_unresolved", "nothing provides %s, which %s asks for", m[1], asker).Fix("%s", fix)
	}
	for _, m := range reNothing.FindAllStringSubmatch(out, 1) {
		return fault.Invalid("deps_unresolved", "nothing provides %s, which %s needs; %s asks for that", m[1], m[2], asker).Fix("%s", fix)
	}
	if m := reDownload.FindString(out); m != "" {
		return infra(fault.Unavailable("repo_away", "dnf cannot download: %.300s", strings.TrimSpace(m)))
	}
	if m := reProblem.FindStringSubmatch(out); m != nil {
		return fault.Invalid("deps_unresolved", "what %s asks for cannot be installed: %.400s", asker, m[1]).Fix("%s", fix)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return infra(fault.Internal("dnf_failed", "dnf failed: %.400s", lines[len(lines)-1]))
}

// unescape undoes what asArgs did to a requirement.
func unescape(s string) string {
	return strings.NewReplacer("[[]", "[", "[*]", "*", "[?]", "?").Replace(s)
}

// causes are the lines that name what broke a build, the surest first.
//
//nolint:gochecknoglobals // a constant table
var causes = []*regexp.Regexp{
	regexp.MustCompile(`^\S+:\d+(?::\d+)?: (?:fatal )?error: `),                            // compilers
	regexp.MustCompile(`(?:undefined reference to|multiple definition of|cannot find -l)`), // linkers
	regexp.MustCompile(`^(?:configure|CMake|meson\.build:\d+:\d+): ?(?:error|ERROR|Error)`),
	regexp.MustCompile(`^\w*(?:Error|Exception): `), // Python and friends
	regexp.MustCompile(`^error: (?:line \d+: |Failed build dependencies|File not found|Installed \(but unpackaged\)|Arch dependent|Empty %files|.*: No such file)`),
	regexp.MustCompile(`: (?:command not found|No such file or directory|Permission denied|No space left on device|Network is unreachable|Temporary failure in name resolution|Could not resolve host.*|cannot fork.*|Cannot allocate memory)$`),
	regexp.MustCompile(`^(?:FAIL|FAILED|not ok)\b`),
	regexp.MustCompile(`^make(?:\[\d+\])?: \*\*\* `),
	regexp.MustCompile(`^error: `),
}

// firstError finds the line of a build log that names the cause: of all lines the first that
// the surest pattern matches.
func firstError(log []byte) string {
	lines := strings.Split(strings.ToValidUTF8(string(log), "?"), "\n")
	for _, re := range causes {
		for _, l := range lines {
			l = strings.TrimRight(l, " \t\r")
			if !strings.HasPrefix(l, "+ ") && re.MatchString(strings.TrimSpace(l)) {
				return strings.TrimSpace(l)[:min(500, len(strings.TrimSpace(l)))]
			}
		}
	}
	return ""
}
