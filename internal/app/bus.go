package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"drover/internal/bus"
	"drover/internal/cli"
	"drover/internal/fault"
)

type busVerbs struct {
	Config busConfig `cmd:"" help:"On the server: what the servers of a NATS cluster need in their configuration. It holds nothing secret." example:"drover bus config --dir /srv/drover"`
	Leaf   busLeaf   `cmd:"" help:"On the server: make the key by which the bus of a site connects." example:"drover bus leaf fra --dir /srv/drover > fra.json"`
}

type busConfig struct {
	Dir string `default:"drover-data" help:"Data directory of the server." type:"path"`
}

// Run prints the configuration.
func (v busConfig) Run(e *cli.Env) error {
	text, err := bus.ServerConfig(filepath.Join(v.Dir, "bus"))
	if err != nil {
		return err
	}
	_, err = io.WriteString(e.Out, text)
	return err
}

type busLeaf struct {
	Name string `arg:"" help:"Name of the site: a-z 0-9."`
	Dir  string `default:"drover-data" help:"Data directory of the server." type:"path"`
}

// Run prints the key.
func (v busLeaf) Run(e *cli.Env) error {
	k, err := bus.NewLeaf(filepath.Join(v.Dir, "bus"), v.Name)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(e.Out)
	enc.SetIndent("", "  ")
	return enc.Encode(k)
}

// openBus opens the bus beside the listener, with the same certificate, and tells the fleet under
// which URLs agents reach it.
func (s *Server) openBus(ctx context.Context) error {
	c := bus.Config{Dir: filepath.Join(s.Config.Dir, "bus"), Listen: s.Config.BusListen, Leaves: s.Config.BusLeafListen, URL: s.Config.BusURL, Log: s.Log}
	if s.Config.BusCA != "" {
		pem, err := os.ReadFile(s.Config.BusCA)
		pool := x509.NewCertPool()
		if err != nil || !pool.AppendCertsFromPEM(pem) {
			return fault.Invalid("bus_ca", "the CA of the bus cannot be read from %s", s.Config.BusCA).Wrap(err)
		}
		c.Cluster = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	host, port, err := net.SplitHostPort(s.listener.Addr().String())
	if err != nil {
		return err
	}
	if c.URL == "" && c.Listen == "" {
		n, err := strconv.Atoi(port)
		if err != nil {
			return err
		}
		n++
		if _, given, err := net.SplitHostPort(s.Config.Listen); err != nil || given == "0" {
			n = 0
		}
		c.Listen = net.JoinHostPort(host, strconv.Itoa(n))
	}
	scheme := "nats"
	if s.cert != nil {
		scheme = "tls"
		c.TLS = &tls.Config{Certificates: []tls.Certificate{*s.cert}, MinVersion: tls.VersionTLS12}
	}
	if err := s.Fleet.OpenBus(ctx, c); err != nil {
		return err
	}
	ca := ""
	if s.CA != "" {
		pem, err := os.ReadFile(s.CA)
		if err != nil {
			return err
		}
		ca = string(pem)
	}
	urls := s.Config.BusPublic
	if len(urls) == 0 && c.URL != "" {
		urls = []string{c.URL}
	}
	if len(urls) == 0 {
		at, busPort, err := net.SplitHostPort(s.Fleet.BusAddr())
		if err != nil {
			return err
		}
		names := s.Config.Names
		if ip := net.ParseIP(at); len(names) == 0 && ip != nil && ip.IsUnspecified() {
			name, err := os.Hostname()
			if err != nil {
				return err
			}
			names = []string{name}
		}
		if len(names) == 0 {
			names = []string{at}
		}
		for _, n := range names {
			urls = append(urls, scheme+"://"+net.JoinHostPort(n, busPort))
		}
	}
	s.Fleet.Reachable(urls, ca)
	return nil
}
