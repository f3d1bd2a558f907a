package words

import (
	"strings"
	"testing"

	"drover/internal/fault"
)

func TestSaltsCommandLinesBecomeDrovers(t *testing.T) {
	for _, c := range []struct{ salt, want string }{
		{"salt * test.ping", "run|*|test.ping"},
		{"salt -b 10% * test.ping", "run|--batch=10%|*|test.ping"},
		{"salt * -b 10% test.ping", "run|--batch=10%|*|test.ping"},
		{"salt * -b10% test.ping", "run|--batch=10%|*|test.ping"},
		{"salt * test.ping --batch-size=5 --batch-wait 3 --failhard", "run|--batch=5|--batch-wait=3|--failhard|*|test.ping"},
		{"salt -G os:CentOS* cmd.run uptime", "run|-G|os:CentOS*|cmd.run|uptime"},
		{"salt -E web.*$ test.ping", "run|-E|web.*$|test.ping"},
		{"salt -L a,b test.ping", "run|-L|a,b|test.ping"},
		{"salt --list a,b test.ping", "run|-L|a,b|test.ping"},
		{"salt -P os:(A|B) test.ping", "run|-P|os:(A|B)|test.ping"},
		{"salt -N web test.ping", "run|-N|web|test.ping"},
		{"salt -S 10.0.0.0/8 test.ping", "run|-S|10.0.0.0/8|test.ping"},
		{"salt -I role:web test.ping", "run|-C|I@role:web|test.ping"},
		{"salt -J role:w.* test.ping", "run|-C|J@role:w.*|test.ping"},
		{"salt -vG os:x test.ping", "run|-G|--show-jid|os:x|test.ping"},
		{"salt -t 60 --timeout=5 * test.ping", "run|*|test.ping"},
		{"salt * --async state.apply web test=True", "run|--async|--test|*|state.apply|web"},
		{"salt * state.apply web test=False", "run|*|state.apply|web"},
		{"salt * http.query http://x test=True", "run|*|http.query|http://x|test=True"},
		{"salt * pkg.install name=vim refresh=True --out json --static -s", "run|--out=json|--static|--summary|*|pkg.install|name=vim|refresh=True"},
		{"salt * grains.items --output=pprint", "run|--out=raw|*|grains.items"},
		{"salt -c /etc/salt -l debug --no-color --log-level=quiet --state-output=mixed -p * test.ping", "run|*|test.ping"},
		{"salt --subset=2 * test.ping", "run|--subset=2|*|test.ping"},
		{"salt * -d pkg", "run|*|sys.doc|pkg"},
		{"salt --preview-target -G os:x", "host|list|-G|os:x"},
		{"salt --version", "version"},
		{"salt -h", "run|--help"},
		{"salt * a.b -- -x", "!NAME=-x"},
		{"salt *", "!function behind"},
		{"salt", "!target"},
		{"salt * ping", "!no function"},
		{"salt * test.ping,cmd.run ,id", "!several"},
		{"salt -R %a test.ping", "!-R is not supported"},
		{"salt -R %a test.ping", "!drover group set"},
		{"salt -G a:b -E c test.ping", "!one way only"},
		{"salt --batch-safe-limit=10 * test.ping", "!-b 10%"},
		{"salt -a pam * test.ping", "!drover login"},
		{"salt --return mysql * test.ping", "!drover job show"},
		{"salt --out=values_only * test.ping", "!values_only"},
		{"salt --frobnicate * test.ping", "!--frobnicate is no option"},
		{"salt -Z * test.ping", "!-Z is no option"},
		{"salt --async=1 * test.ping", "!takes no value"},
		{"salt * test.ping -b", "!needs a value"},
		{"salt -t soon * test.ping", "!no number"},

		{"salt-call --local state.apply web test=true", "agent|call|--local|--test|state.apply|web"},
		{"salt-call test.ping", "agent|call|test.ping"},
		{"salt-call -g --out=json", "agent|call|--out=json|grains.items"},
		{"salt-call -l debug --retcode-passthrough --out nested pkg.version bash", "agent|call|--out=yaml|pkg.version|bash"},
		{"salt-call", "!needs a function"},
		{"salt-call --pillar-root=/x test.ping", "!not supported"},

		{"salt-key", "salt-key|--list-all"},
		{"salt-key -L", "salt-key|--list-all"},
		{"salt-key -l un", "salt-key|--list=un"},
		{"salt-key -l debug", "!no list of keys"},
		{"salt-key --list=acc --out=json", "--output=json|salt-key|--list=acc"},
		{"salt-key -a web-01 -y", "salt-key|--accept=web-01|--yes"},
		{"salt-key -ya web-*", "salt-key|--accept=web-*|--yes"},
		{"salt-key -A -y", "salt-key|--accept-all|--yes"},
		{"salt-key -r x", "salt-key|--reject=x"},
		{"salt-key -R", "salt-key|--reject-all"},
		{"salt-key -d x", "salt-key|--delete=x"},
		{"salt-key -D -y", "salt-key|--delete-all|--yes"},
		{"salt-key -f web-01", "salt-key|--finger=web-01"},
		{"salt-key -F", "salt-key|--finger-all"},
		{"salt-key -a x -d y", "!one thing"},
		{"salt-key --gen-keys=x", "!drover host ticket"},
		{"salt-key x", "!no words"},

		{"salt-run jobs.active", "job|list|--state=running"},
		{"salt-run jobs.list_jobs --out=json", "--output=json|job|list"},
		{"salt-run jobs.list_jobs search_function=pkg.install", "job|list|--fun=pkg.install"},
		{"salt-run jobs.lookup_jid 20261128101500123456", "job|show|20261128101500123456"},
		{"salt-run jobs.lookup_jid jid=20261128101500123456 outputter=json", "job|show|20261128101500123456"},
		{"salt-run jobs.print_job 2", "job|show|2"},
		{"salt-run jobs.last_run", "job|list|--limit=1"},
		{"salt-run manage.up", "host|list|-Q|online"},
		{"salt-run manage.down", "host|list|-Q|not online"},
		{"salt-run manage.status -l quiet", "host|list|--state=accepted"},
		{"salt-run state.event pretty=True", "job|events"},
		{"salt-run jobs.lookup_jid", "!takes 1"},
		{"salt-run state.orchestrate orch.x", "!drover run"},
		{"salt-run no.such", "!jobs.active"},
		{"salt-run", "!needs a runner"},
		{"salt-ssh x", "!no command of Salt"},
	} {
		words := strings.Fields(c.salt)
		got, err := Translate(words[0], words[1:])
		switch {
		case strings.HasPrefix(c.want, "!"):
			if fault.Code(err) != "usage" || !strings.Contains(err.Error(), c.want[1:]) {
				t.Errorf("%s: %q, %v; want an error with %q", c.salt, got, err, c.want[1:])
			}
			if strings.Contains(err.Error(), "%!") {
				t.Errorf("%s: %v", c.salt, err)
			}
		case err != nil || strings.Join(got, "|") != c.want:
			t.Errorf("%s:\n got %s, %v\nwant %s", c.salt, strings.Join(got, "|"), err, c.want)
		}
	}
}

func TestCommandsAreKnownByTheirNames(t *testing.T) {
	for _, c := range []struct {
		words, name string
		rest        int
	}{
		{"salt * test.ping", "salt", 2}, {"/usr/bin/salt-call test.ping", "salt-call", 1}, {"salt-key", "salt-key", 0}, {"salt-master -d", "", 0}, {"run salt x", "", 0}, {"", "", 0},
	} {
		name, rest, ok := Command(strings.Fields(c.words))
		if name := map[bool]string{true: name}[ok]; name != c.name || len(rest) != c.rest {
			t.Errorf("%q: %q %q %v", c.words, name, rest, ok)
		}
	}
}

func FuzzTranslate(f *testing.F) {
	for _, s := range []string{"salt\x00*\x00-b\x0010%\x00test.ping", "salt-key\x00-ya\x00x", "salt-call\x00--local\x00a.b", "salt-run\x00jobs.active", "salt\x00-\x00--\x00-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		words := strings.Split(s, "\x00")
		got, err := Translate(words[0], words[1:])
		if err != nil {
			if fault.Code(err) != "usage" {
				t.Errorf("%q: %v", words, err)
			}
			return
		}
		if len(got) == 0 {
			t.Errorf("%q becomes nothing", words)
		}
		for _, w := range got {
			if w == "--" { // behind which the rest would be a command line of the shell
				t.Errorf("%q becomes %q", words, got)
			}
		}
	})
}
