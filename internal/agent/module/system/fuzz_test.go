package system

import (
	"encoding/json"
	"testing"
	"time"

	"drover/internal/agent/module"
)

func marshal(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// FuzzTables feeds every parser of what the kernel, the firmware and programs print.
func FuzzTables(f *testing.F) {
	f.Add([]byte(mountinfo))
	f.Add(dmiTable())
	f.Add([]byte("42 (a) b) S 1 42 42 0 -1 0 0 0 0 0 1 1 0 0 20 0 1 0 1 1 1"))
	f.Add([]byte(`{"report":[{"pv":[{"pv_name":"/dev/sdb","pv_size":12}]}]}`))
	f.Add([]byte("/srv(/.*)?   all files   system_u:object_r:var_t:s0"))
	f.Add([]byte("DEVNAME=/dev/a\nLABEL=a\\ b\n\nDEVNAME=/dev/b\n"))
	f.Add([]byte("\\043a\t/b\\014\f c\u00a0\tdefaults\t0\t0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := string(b)
		for _, e := range parseMountinfo(s) {
			if e.Dir == "" || e.network() && e.Type == "xfs" && len(e.opts()) == 0 {
				t.Errorf("%+v", e)
			}
		}
		for _, r := range parseDMI(b) {
			if _, err := marshal(r.data()); err != nil {
				t.Error(err)
			}
		}
		if p, ok := parseStat(s); ok && p.Name == "" && len(s) < 10 {
			t.Errorf("%+v", p)
		}
		parseUtmp(b)
		if rows, err := parseReport(s); err == nil {
			for _, r := range rows {
				derive("pvs", r)
				derive("lvs", r)
			}
		}
		fcontextLine(s)
		seboolLine(s)
		findPort(s, "tcp", "80", "")
		parseSemodules(s)
		localeLang(s)
		strftime(time.Unix(0, 0).UTC(), s)
		fstab(s)
		// A line of fstab reads back as it was written.
		if e, ok := fstabLine(s); ok {
			if again, ok := fstabLine(e.String()); !ok || again != e && module.Valid(e.Device) == e.Device && module.Valid(e.Dir) == e.Dir {
				t.Errorf("%q: %+v is read as %+v", s, e, again)
			}
		}
		// Setting a kernel parameter twice changes nothing the second time.
		if next, stands := sysctlEdit(module.Valid(s), "a.b", "1"); !stands {
			if again, stands := sysctlEdit(next, "a.b", "1"); !stands || again != next {
				t.Errorf("%q then %q", next, again)
			}
		}
		if _, err := marshal(parseExport(s)); err != nil {
			t.Error(err)
		}
	})
}
