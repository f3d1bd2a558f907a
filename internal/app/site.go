package app

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"drover/internal/bus"
	"drover/internal/cli"
	"drover/internal/fault"
	"drover/internal/site"
)

type siteVerb struct {
	Centre  string   `required:"" help:"URL of the server, or of another site."`
	Dir     string   `default:"drover-site" help:"Directory of what is kept." type:"path"`
	Listen  string   `default:"127.0.0.1:8080" help:"Address to serve on."`
	Channel []string `required:"" help:"A channel to follow. Repeatable."`
	Ahead   bool     `help:"Fetch the packages of the channels before they are asked for."`
	Max     string   `help:"Bytes of packages to keep, as 200G; no bound when not given."`
	Trust   []string `help:"NAME=FILE: a key to take from a file; NAME: to take the one that the centre has; none: to take what is not signed. Repeatable."`
	Cert    string   `help:"Certificate file to serve TLS with; plain HTTP without." type:"existingfile"`
	Key     string   `help:"Key file of the certificate." type:"existingfile"`
	Debug   bool     `help:"Log more."`

	BusKey    string `help:"File with the key of this site's bus, which drover bus leaf prints; no bus for agents when not given." type:"existingfile"`
	BusHub    string `help:"URL of the server's listener for leaves: tls://HOST:PORT."`
	BusListen string `default:"127.0.0.1:7281" help:"Address on which agents at this site keep their connections."`
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
	if v.BusKey != "" {
		leaf, err := v.leaf(e, l)
		if err != nil {
			return err
		}
		defer leaf.Close()
		fmt.Fprintf(e.Out, "agents connect to %s\n", leaf.Addr())
	}
	fmt.Fprintf(e.Out, "site of %s serves %s (data in %s)\n", c.Base, s.URL, v.Dir)
	return s.Run(e.Ctx)
}

// leaf starts the bus of a site.
func (v siteVerb) leaf(e *cli.Env, l *line) (*bus.Leaf, error) {
	b, err := os.ReadFile(v.BusKey)
	if err != nil {
		return nil, err
	}
	c := bus.LeafConfig{Dir: filepath.Join(v.Dir, "bus"), Hub: v.BusHub, Listen: v.BusListen, Log: logger(e.Err, v.Debug)}
	if err := json.Unmarshal(b, &c.Key); err != nil {
		return nil, fault.Invalid("leaf_key", "%s holds no key of a leaf", v.BusKey).Wrap(err).Fix("make one on the server: `drover bus leaf NAME`")
	}
	if strings.HasPrefix(v.BusHub, "tls://") {
		pool, err := trusted(l.CA)
		if err != nil {
			return nil, err
		}
		c.HubTLS = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	if v.Cert != "" {
		cert, err := tls.LoadX509KeyPair(v.Cert, v.Key)
		if err != nil {
			return nil, fault.Invalid("tls", "the certificate %s cannot be used", v.Cert).Wrap(err)
		}
		c.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	}
	return bus.OpenLeaf(c)
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
