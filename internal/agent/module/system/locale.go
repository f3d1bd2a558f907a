package system

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"drover/internal/agent/module"
	"drover/internal/fault"
)

func (m *machine) locale() []module.Function {
	name := module.Need("locale", module.Str)
	return []module.Function{
		module.Reads("locale.get_locale", "Tells the language of the host.\n\nsalt '*' locale.get_locale", func(context.Context, *module.Call) (any, error) {
			text, err := module.ReadIfThere(m.path(m.localeFile()))
			return localeLang(text), err
		}),
		module.Tests("locale.set_locale", "Sets the language of the host.\n\nsalt '*' locale.set_locale en_US.UTF-8", m.setLocale, name),
		module.Reads("locale.list_avail", "Lists the languages that the host has.\n\nsalt '*' locale.list_avail", func(ctx context.Context, _ *module.Call) (any, error) {
			text, err := m.must(ctx, "locale", "-a")
			return module.Lines(text), err
		}),
		module.Reads("locale.avail", "Tells whether the host has a language.\n\nsalt '*' locale.avail en_US.UTF-8", func(ctx context.Context, c *module.Call) (any, error) {
			return m.localeAvail(ctx, c.Str("locale"))
		}, name),
		module.Extra(module.Tests("locale.gen_locale", "Makes a language that the host has not.\n\nsalt '*' locale.gen_locale en_IE.UTF-8", m.genLocale, name, module.May("verbose", module.Bool, false))),
	}
}

// localeFile is systemd's, or Debian's when only that is there.
func (m *machine) localeFile() string {
	if !m.exists("/etc/locale.conf") && m.exists("/etc/default/locale") {
		return "/etc/default/locale"
	}
	return "/etc/locale.conf"
}

func localeLang(text string) string {
	lang := ""
	for _, l := range module.Lines(text) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(l), "LANG="); ok {
			lang = strings.Trim(strings.TrimSpace(v), `"'`)
		}
	}
	return lang
}

// goodLocale lets through what a locale's name is made of.
func goodLocale(s string) error {
	if s == "" || s[0] == '-' || s[0] == '.' || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.@-") != "" {
		return fault.Invalid("bad_name", "%q is not the name of a locale", s)
	}
	return nil
}

// normalLocale makes names equal that mean the same: en_US.UTF-8 and en_US.utf8.
func normalLocale(s string) string {
	s, _, _ = strings.Cut(s, " ")
	s, mod, _ := strings.Cut(s, "@")
	lang, charset, _ := strings.Cut(s, ".")
	return lang + "." + strings.ReplaceAll(strings.ToLower(charset), "-", "") + "@" + strings.ToLower(mod)
}

func (m *machine) localeAvail(ctx context.Context, name string) (bool, error) {
	text, err := m.must(ctx, "locale", "-a")
	return slices.ContainsFunc(module.Lines(text), func(l string) bool { return normalLocale(l) == normalLocale(name) }), err
}

func (m *machine) setLocale(ctx context.Context, c *module.Call) (any, error) {
	name := c.Str("locale")
	if err := goodLocale(name); err != nil || c.Test {
		return err == nil, err
	}
	file := m.localeFile()
	text, err := module.ReadIfThere(m.path(file))
	if err != nil {
		return nil, err
	}
	lines := module.Lines(text)
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "LANG=") })
	if i < 0 {
		lines = append(lines, "LANG="+name)
	} else {
		lines[i] = "LANG=" + name
	}
	if file == "/etc/locale.conf" {
		var all []string
		for _, l := range lines {
			if k, v, ok := strings.Cut(strings.TrimSpace(l), "="); ok && !strings.HasPrefix(k, "#") {
				all = append(all, k+"="+strings.Trim(v, `"'`))
			}
		}
		// localed also tells the running system; it writes the same file.
		err := m.call(ctx, "org.freedesktop.locale1", "/org/freedesktop/locale1", "org.freedesktop.locale1.SetLocale", []any{all, false})
		if err == nil {
			return true, nil
		}
		if !absent(err) {
			return nil, err
		}
	}
	return true, writeKeep(m.path(file), strings.Join(lines, "\n")+"\n", 0o644)
}

func (m *machine) genLocale(ctx context.Context, c *module.Call) (any, error) {
	name, charset, _ := strings.Cut(c.Str("locale"), " ")
	if err := goodLocale(name); err != nil {
		return nil, err
	}
	if ok, err := m.localeAvail(ctx, name); err != nil || ok || c.Test {
		return true, err
	}
	lang, rest, _ := strings.Cut(name, ".")
	mod := ""
	if i := strings.IndexByte(rest, '@'); i >= 0 {
		rest, mod = rest[:i], rest[i:]
	}
	if charset == "" {
		charset = rest
	}
	if charset == "" {
		charset = "UTF-8"
	}
	if err := goodLocale(charset); err != nil {
		return nil, err
	}
	if _, err := m.read("/usr/share/i18n/locales/" + lang + mod); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.NotFound("locale_missing", "the host has no source for the locale %q", name).Fix("install glibc-langpack-%s, or glibc-locale-source", strings.SplitN(lang, "_", 2)[0])
	}
	o, err := m.run(ctx, "localedef", "--force", "-i", lang+mod, "-f", charset, name, "--quiet")
	if err != nil {
		return nil, err
	}
	if c.Bool("verbose") {
		return map[string]any{"retcode": int64(o.Code), "stdout": o.Out, "stderr": o.Err, "pid": int64(0)}, nil
	}
	return o.Code == 0, nil
}
