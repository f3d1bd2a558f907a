package app

import (
	"fmt"
	"strconv"
	"strings"

	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/site"
)

type siteVerb struct {
	Centre  string   `required:"" help:"URL of the server, or of another site."`
	Dir     string   `default:"drover-site" help:"Directory of what is kept." type:"path"`
	Listen  string   `default:"127.0.0.1:7281" help:"Address to serve on."`
	Channel []string `required:"" help:"A channel to follow. Repeatable."`
	Ahead   bool     `help:"Fetch the packages of the channels before they are asked for."`
	Max     string   `help:"Bytes of packages to keep, as 200G; no bound when not given."`
	Trust   []string `help:"NAME=FILE: a key to take from a file; NAME: to take the one that the centre has; none: to take what is not signed. Repeatable."`
	Cert    string   `help:"Certificate file to serve TLS with; plain HTTP without." type:"existingfile"`
	Key     string   `help:"Key file of the certificate." type:"existingfile"`
	Debug   bool     `help:"Log more."`
}

// Run runs a site until it is told to stop.
func (v siteVerb) Run(e *cli.Env, l *line) error {
	if (v.Cert == "") != (v.Key == "") {
		return fault.Invalid("tls", "cert and key go together")
	}
	c, err := client(v.Centre, "", l.CA)
	if err != nil {
		return err
	}
	most, err := parseSize(v.Max)
	if err != nil {
		return err
	}
	trust := map[string]string{}
	for _, t := range v.Trust {
		name, file, _ := strings.Cut(t, "=")
		trust[name] = file
	}
	s, err := site.New(site.Config{Centre: c, CA: l.CA, Dir: v.Dir, Listen: v.Listen, Cert: v.Cert, CertKey: v.Key, Channels: v.Channel, Trust: trust, Ahead: v.Ahead, Max: most, Version: e.Version, Log: logger(e.Err, v.Debug)})
	if err != nil {
		return err
	}
	defer s.Close()
	fmt.Fprintf(e.Out, "site of %s serves %s (data in %s)\n", c.Base, s.URL, v.Dir)
	return s.Run(e.Ctx)
}

// parseSize reads a number of bytes: 200G, 512M, 1T, or a plain number.
func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	number, shift := s, 0
	for i, unit := range "KMGT" {
		if n, ok := strings.CutSuffix(strings.TrimSuffix(strings.ToUpper(s), "B"), string(unit)); ok {
			number, shift = n, 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > 1<<62>>shift {
		return 0, fault.Invalid("size", "%.40q is no size", s).Fix("give a number with K, M, G or T, as 200G")
	}
	return n << shift, nil
}
