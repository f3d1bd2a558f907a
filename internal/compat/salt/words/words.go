package words

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"drover/internal/fault"
)

// Names are the commands of Salt that are understood.
func Names() []string { return []string{"salt", "salt-call", "salt-key", "salt-run"} }

func names[T any](m map[string]T) []string { return slices.Sorted(maps.Keys(m)) }

// List is the state of hosts that Salt's short name of a list of keys means, "" for all of them.
func List(name string) (state string, ok bool) {
	switch {
	case name == "all":
		return "", true
	case strings.HasPrefix(name, "acc"):
		return "accepted", true
	case strings.HasPrefix(name, "pre"), strings.HasPrefix(name, "un"):
		return "pending", true
	case strings.HasPrefix(name, "rej"):
		return "rejected", true
	case strings.HasPrefix(name, "den"):
		return "revoked", true
	}
	return "", false
}

// Command tells whether words are a command line of Salt's: whether the first of them, which may
// be a path, is a name of one of Salt's commands.
func Command(words []string) (name string, args []string, ok bool) {
	if len(words) == 0 {
		return "", nil, false
	}
	name = filepath.Base(words[0])
	if !slices.Contains(Names(), name) {
		return "", nil, false
	}
	return name, words[1:], true
}

// option is an option of one of Salt's commands.
type option struct {
	names string // "b batch-size batch": those of one letter have one dash
	takes bool   // a value
	drop  bool   // it has no meaning here, and does no harm
	no    string // why there is none, and what to do instead
	put   func(c *command, value string) error
}

// command is a command line that is being read.
type command struct {
	flags  []string // drover's, in front of the words
	global []string // drover's, in front of the verb
	words  []string
	form   string // the option that says how the target is written
	fun    string // of an option that stands for a function
	help   bool
	list   bool   // --preview-target
	action string // of salt-key
	key    string // what the action is for
}

func flag(name string) func(*command, string) error {
	return func(c *command, v string) error {
		if v != "" {
			v = "=" + v
		}
		c.flags = append(c.flags, "--"+name+v)
		return nil
	}
}

func usage(format string, args ...any) *fault.Error { return fault.Invalid("usage", format, args...) }

// everywhere are the options that all of Salt's commands have.
func everywhere() []option {
	return []option{
		{names: "h help", put: func(c *command, _ string) error { c.help = true; return nil }},
		{names: "c config-dir", takes: true, drop: true},
		{names: "l log-level", takes: true, drop: true},
		{names: "log-file", takes: true, drop: true},
		{names: "log-file-level", takes: true, drop: true},
		{names: "log-fmt-console log-fmt-jid", takes: true, drop: true},
		{names: "no-color no-colour force-color force-colour", drop: true}, //nolint:misspell // Salt takes both spellings
		{names: "state-output state_output state-verbose state_verbose", takes: true, drop: true},
		{names: "out-indent output-indent", takes: true, drop: true},
		{names: "out-file output-file out-file-append output-file-append", takes: true, no: "there is no option for a file: let the shell write one, with > FILE"},
		{names: "hard-crash no-parse", drop: true},
		{names: "a auth eauth external-auth username password T make-token", takes: true, no: "log in once with `drover login`, or set DROVER_TOKEN"},
	}
}

// targets are the options that say how a target is written.
func targets() []option {
	form := func(names, flag string) option {
		return option{names: names, put: func(c *command, _ string) error {
			if c.form != "" {
				return usage("a target is written in one way only: both %s and %s are given", c.form, flag)
			}
			c.form = flag
			return nil
		}}
	}
	return []option{form("E pcre", "-E"), form("L list", "-L"), form("G grain", "-G"), form("P grain-pcre", "-P"), form("C compound", "-C"), form("N nodegroup", "-N"), form("S ipcidr", "-S"), form("I pillar", "-I"), form("J pillar-pcre", "-J"),
		{names: "R range", no: "there is no range server: make a group with `drover group set`, and use -N GROUP"}}
}

// outputs are Salt's ways to print, as drover's.
//
//nolint:gochecknoglobals // a constant table
var outputs = map[string]string{"nested": "nested", "json": "json", "yaml": "yaml", "txt": "txt", "table": "table", "raw": "raw", "pprint": "raw", "highstate": "highstate", "no_return": "no_return", "quiet": "quiet"}

func output(c *command, v string) error {
	o := outputs[v]
	if o == "" {
		return usage("there is no way to print called %.40q", v).Fix("use --out with one of %s", strings.Join(names(outputs), ", "))
	}
	c.flags = append(c.flags, "--out="+o)
	return nil
}

func number(option, drover string) func(*command, string) error {
	return func(c *command, v string) error {
		if n, err := strconv.ParseFloat(v, 64); err != nil || n < 0 {
			return usage("%.40q is no number, which %s needs", v, option)
		}
		if drover != "" {
			c.flags = append(c.flags, "--"+drover+"="+v)
		}
		return nil
	}
}

func fun(name string) func(*command, string) error {
	return func(c *command, _ string) error { c.fun = name; return nil }
}

// saltOptions are those of salt. Its timeout is not how long it waits: it goes on as long as a host
// is at it, and so does drover, without having to ask.
func saltOptions() []option {
	return append(append(everywhere(), targets()...), []option{
		{names: "b batch batch-size", takes: true, put: flag("batch")},
		{names: "batch-wait", takes: true, put: number("--batch-wait", "batch-wait")},
		{names: "batch-safe-limit batch-safe-size", takes: true, no: "give the size of a batch itself: -b 10%"},
		{names: "failhard", put: flag("failhard")},
		{names: "t timeout", takes: true, put: number("-t", "")},
		{names: "gather-job-timeout", takes: true, put: number("--gather-job-timeout", "")},
		{names: "async", put: flag("async")},
		{names: "show-jid v verbose", put: flag("show-jid")},
		{names: "out output", takes: true, put: output},
		{names: "static", put: flag("static")},
		{names: "s summary", put: flag("summary")},
		{names: "subset", takes: true, put: number("--subset", "subset")},
		{names: "d doc documentation", put: fun("sys.doc")},
		{names: "preview-target", put: func(c *command, _ string) error { c.list = true; return nil }},
		{names: "p progress hide-timeout show-timeout", drop: true},
		{names: "return return_config return_kwargs", takes: true, no: "every result is kept: see `drover job show JID`; `drover react set` calls a web address with them"},
		{names: "metadata", takes: true, no: "say why with `drover run --reason`"},
		{names: "args-separator module-executors executor-opts", takes: true, no: "call one function at a time"},
	}...)
}

func callOptions() []option {
	return append(everywhere(), []option{
		{names: "local", put: flag("local")},
		{names: "g grains", put: fun("grains.items")},
		{names: "d doc documentation", put: fun("sys.doc")},
		{names: "t timeout", takes: true, drop: true}, // of a master, of which there is none
		{names: "out output", takes: true, put: func(c *command, v string) error {
			if v == "nested" || v == "pprint" || v == "raw" || v == "highstate" {
				v = "yaml"
			}
			if v != "yaml" && v != "json" && v != "txt" {
				return usage("there is no way to print called %.40q", v).Fix("use --out with one of json, nested, txt, yaml")
			}
			c.flags = append(c.flags, "--out="+v)
			return nil
		}},
		{names: "retcode-passthrough print-metadata skip-grains refresh-grains-cache", drop: true},
		{names: "id master", takes: true, drop: true},
		{names: "return file-root pillar-root states-dir m module-dirs metadata", takes: true, no: "`drover agent call` takes what the server and the configuration of the agent say"},
	}...)
}

func runOptions() []option {
	return append(everywhere(), []option{
		{names: "out output", takes: true, put: form},
		{names: "t timeout", takes: true, drop: true},
		{names: "async skip-grains show-jid", drop: true},
		{names: "d doc documentation", no: "see `drover --help`"},
	}...)
}

func keyOptions() []option {
	act := func(names, action string, takes bool) option {
		return option{names: names, takes: takes, put: func(c *command, v string) error {
			if c.action != "" {
				return usage("salt-key does one thing at a time: both --%s and --%s are given", c.action, action)
			}
			c.action, c.key = action, v
			return nil
		}}
	}
	const made = "each host makes its own key, which never leaves it: `drover host ticket` lets one in"
	return append(slices.DeleteFunc(everywhere(), func(o option) bool { return strings.HasPrefix(o.names, "a ") }), []option{
		act("L list-all", "list-all", false), act("l list", "list", true), act("a accept", "accept", true), act("A accept-all", "accept-all", false), act("r reject", "reject", true), act("R reject-all", "reject-all", false),
		act("d delete", "delete", true), act("D delete-all", "delete-all", false), act("f finger print-key", "finger", true), act("p print", "finger", true), act("F finger-all P print-all", "finger-all", false),
		{names: "y yes", put: flag("yes")},
		{names: "include-all include-accepted include-rejected include-denied", no: "accept or revoke a host by its name: `drover host accept`, `drover host revoke`"},
		{names: "out output", takes: true, put: form},
		{names: "q quiet preserve-minions rotate-aes-key", drop: true},
		{names: "u user", takes: true, drop: true},
		{names: "gen-keys gen-keys-dir keysize gen-signature pub-keys", takes: true, no: made},
	}...)
}

// form is Salt's way to print, of drover's own lists.
func form(c *command, v string) error {
	switch v {
	case "json", "yaml":
		c.global = append(c.global, "--output="+v)
	case "nested", "pprint", "txt", "raw", "quiet", "highstate", "table":
	default:
		return usage("there is no way to print called %.40q", v).Fix("use --out with json, nested or yaml")
	}
	return nil
}

// Translate makes drover's command line of one of Salt's.
func Translate(name string, args []string) ([]string, error) {
	var options []option
	switch name {
	case "salt":
		options = saltOptions()
	case "salt-call":
		options = callOptions()
	case "salt-key":
		options = keyOptions()
	case "salt-run":
		options = runOptions()
	default:
		return nil, usage("%.40q is no command of Salt that is understood", name).Fix("use one of %s, or drover itself", strings.Join(Names(), ", "))
	}
	c := &command{}
	if name == "salt-key" { // whose -l is no level of the log
		options = slices.DeleteFunc(options, func(o option) bool { return o.names == "l log-level" })
		options = append(options, option{names: "log-level", takes: true, drop: true})
	}
	if len(args) == 1 && (args[0] == "--version" || args[0] == "-V" || args[0] == "--versions-report") {
		return []string{"version"}, nil
	}
	if err := c.read(name, options, args); err != nil {
		return nil, err
	}
	switch name {
	case "salt":
		return c.salt()
	case "salt-call":
		return c.call()
	case "salt-key":
		return c.keys()
	}
	return c.runner()
}

// read takes options and words apart as Salt does: options may stand anywhere, those of one letter
// may stand together, and behind "--" everything is a word.
func (c *command) read(name string, options []option, args []string) error {
	find := func(n string) *option {
		for i := range options {
			if slices.Contains(strings.Fields(options[i].names), n) {
				return &options[i]
			}
		}
		return nil
	}
	use := func(shown string, o *option, value string) error {
		switch {
		case o == nil:
			return usage("%s %s is no option that is understood", name, shown).Fix("see `%s --help`", name)
		case o.no != "":
			return usage("%s %s is not supported", name, shown).Fix("%s", o.no)
		case o.drop:
			return nil
		}
		return o.put(c, value)
	}
	for i := 0; i < len(args); i++ {
		w := args[i]
		next := func(shown string) (string, error) {
			if i++; i >= len(args) {
				return "", usage("%s %s needs a value", name, shown)
			}
			return args[i], nil
		}
		switch {
		case w == "--":
			c.words = append(c.words, args[i+1:]...)
			return nil
		case strings.HasPrefix(w, "--"):
			long, value, has := strings.Cut(w[2:], "=")
			o := find(long)
			if len(long) < 2 {
				o = nil
			}
			if o != nil && o.takes && !has && o.no == "" {
				var err error
				if value, err = next("--" + long); err != nil {
					return err
				}
			}
			if o != nil && !o.takes && has {
				return usage("%s --%s takes no value", name, long)
			}
			if err := use("--"+long, o, value); err != nil {
				return err
			}
		case len(w) > 1 && w[0] == '-':
			for rest := w[1:]; rest != ""; {
				letter := rest[:1]
				rest = rest[1:]
				o, value := find(letter), ""
				if o != nil && o.takes && o.no == "" {
					if value, rest = rest, ""; value == "" {
						var err error
						if value, err = next("-" + letter); err != nil {
							return err
						}
					}
				}
				if err := use("-"+letter, o, value); err != nil {
					return err
				}
			}
		default:
			c.words = append(c.words, w)
		}
	}
	return nil
}

// plain fails for a word that would be taken for an option.
func plain(words []string) error {
	for _, w := range words {
		if strings.HasPrefix(w, "-") && w != "-" {
			return usage("the argument %.100q would be taken for an option", w).Fix("give it by its name: NAME=%s", w)
		}
	}
	return nil
}

var (
	reTest   = regexp.MustCompile(`^test=(.*)$`)
	reCalled = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*$`)
)

// tested takes Salt's test=True out of the arguments of a function.
func tested(fun string, words []string) (rest []string, test bool) {
	for _, w := range words {
		m := reTest.FindStringSubmatch(w)
		if m == nil || fun == "http.query" { // which has an argument of this name
			rest = append(rest, w)
			continue
		}
		test = strings.EqualFold(m[1], "true") || m[1] == "1"
	}
	return rest, test
}

func (c *command) salt() ([]string, error) {
	if c.help {
		return []string{"run", "--help"}, nil
	}
	if len(c.words) == 0 {
		return nil, usage("salt needs a target and a function").Fix("salt '*' test.ping")
	}
	target, words := c.words[0], c.words[1:]
	if c.form == "-I" || c.form == "-J" { // as a part of a compound target
		if strings.ContainsAny(target, " \t()") {
			return nil, usage("a pillar with spaces or parentheses cannot be told from a compound target: %.100q", target).Fix("use a glob: ? stands for one letter")
		}
		target, c.form = c.form[1:]+"@"+target, "-C"
	}
	if err := plain(append([]string{target}, words...)); err != nil {
		return nil, err
	}
	form := []string{}
	if c.form != "" {
		form = append(form, c.form)
	}
	if c.list {
		return slices.Concat([]string{"host", "list"}, form, []string{target}), nil
	}
	fun := c.fun
	if fun == "" {
		if len(words) == 0 {
			return nil, usage("salt needs a function behind the target").Fix("salt %s test.ping", target)
		}
		fun, words = words[0], words[1:]
	}
	if strings.Contains(fun, ",") {
		return nil, usage("%.100q are several functions", fun).Fix("call one function at a time")
	}
	if !reCalled.MatchString(fun) {
		return nil, usage("%.100q is no function", fun).Fix("give MODULE.FUNCTION, such as test.ping")
	}
	words, test := tested(fun, words)
	if test {
		c.flags = append(c.flags, "--test")
	}
	return slices.Concat([]string{"run"}, form, c.flags, []string{target, fun}, words), nil
}

func (c *command) call() ([]string, error) {
	if c.help {
		return []string{"agent", "call", "--help"}, nil
	}
	words, fun := c.words, c.fun
	if fun == "" {
		if len(words) == 0 {
			return nil, usage("salt-call needs a function").Fix("salt-call test.ping")
		}
		fun, words = words[0], words[1:]
	}
	if err := plain(append([]string{fun}, words...)); err != nil {
		return nil, err
	}
	words, test := tested(fun, words)
	if test {
		c.flags = append(c.flags, "--test")
	}
	return slices.Concat([]string{"agent", "call"}, c.flags, []string{fun}, words), nil
}

func (c *command) keys() ([]string, error) {
	if c.help {
		return []string{"salt-key", "--help"}, nil
	}
	if len(c.words) > 0 {
		return nil, usage("salt-key takes no words beside its options: %.100q", c.words[0]).Fix("salt-key -a NAME")
	}
	if c.action == "" {
		c.action = "list-all"
	}
	if c.action == "list" {
		if _, ok := List(c.key); !ok {
			return nil, usage("%.40q is no list of keys", c.key).Fix("use all, accepted, pre, rejected or denied")
		}
	}
	act := "--" + c.action
	if c.key != "" {
		act += "=" + c.key
	}
	return slices.Concat(c.global, []string{"salt-key", act}, c.flags), nil
}

// runner makes the verb of a runner.
func (c *command) runner() ([]string, error) {
	if c.help || len(c.words) == 0 {
		return nil, usage("salt-run needs a runner").Fix("use one of %s", strings.Join(names(verbsOf()), ", "))
	}
	if err := plain(c.words); err != nil {
		return nil, err
	}
	fun := c.words[0]
	v, ok := verbsOf()[fun]
	if !ok {
		instead := map[string]string{
			"state.orchestrate": "run its steps with `drover run`, one after the other", "state.orch": "run its steps with `drover run`, one after the other", "state.event": "see `drover job events`",
			"salt.cmd": "call the function on a host: `drover run HOST MODULE.FUNCTION`", "fileserver.update": "nothing has to be told: what is pushed is served",
		}[fun]
		if instead == "" {
			instead = "use one of " + strings.Join(names(verbsOf()), ", ")
		}
		return nil, usage("the runner %.100q is not supported", fun).Fix("%s", instead)
	}
	var pos []string
	for _, w := range c.words[1:] {
		k, value, named := strings.Cut(w, "=")
		switch {
		case named && (k == "jid" || k == "tgt"):
			pos = append(pos, value)
		case named && slices.Contains([]string{"outputter", "display_progress", "ext_source", "show_ip", "show_ipv4", "subset", "missing", "pretty"}, k):
		case named && v.options[k] != "":
			pos = append(pos, v.options[k]+"="+value)
		case named:
			return nil, usage("the argument %.40q of %s is not supported", k, fun)
		default:
			pos = append(pos, w)
		}
	}
	bare := slices.DeleteFunc(slices.Clone(pos), func(w string) bool { return strings.HasPrefix(w, "--") })
	if len(bare) < v.least || len(bare) > v.most {
		return nil, usage("%s takes %d arguments, and %d are given", fun, v.most, len(bare)).Fix("salt-run %s%s", fun, v.example)
	}
	return slices.Concat(c.global, strings.Fields(v.line), v.more, pos), nil
}

// verb is drover's verb for a runner.
type verb struct {
	line        string
	more        []string
	least, most int
	example     string
	options     map[string]string // by Salt's name of the argument
}

func verbsOf() map[string]verb {
	one := func(line string) verb { return verb{line: line, least: 1, most: 1, example: " JID"} }
	return map[string]verb{
		"jobs.active":     {line: "job list", more: []string{"--state=running"}},
		"jobs.list_jobs":  {line: "job list", options: map[string]string{"search_function": "--fun", "search_target": "--search"}},
		"jobs.lookup_jid": one("job show"),
		"jobs.list_job":   one("job show"),
		"jobs.print_job":  one("job show"),
		"jobs.last_run":   {line: "job list", more: []string{"--limit=1"}, options: map[string]string{"function": "--fun", "target": "--search"}},
		"manage.up":       {line: "host list", more: []string{"-Q", "online"}},
		"manage.present":  {line: "host list", more: []string{"-Q", "online"}},
		"manage.alived":   {line: "host list", more: []string{"-Q", "online"}},
		"manage.down":     {line: "host list", more: []string{"-Q", "not online"}},
		"manage.status":   {line: "host list", more: []string{"--state=accepted"}},
		"manage.versions": {line: "host list", more: []string{"--state=accepted"}},
		"cache.grains":    {line: "host facts", more: []string{"--kind=fact"}, least: 1, most: 1, example: " HOST"},
		"state.event":     {line: "job events", options: map[string]string{"tagmatch": "--tag"}, most: 0},
	}
}
