// Go's crypto/tls, client and server. A client connects once for every line of its standard input.
// The command line is that of programs/python/settings.py.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

const (
	request = "GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n"
	answer  = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"
)

func main() {
	role, address := os.Args[1], net.JoinHostPort(os.Args[2], os.Args[3])
	settings := map[string]string{}
	for _, pair := range os.Args[4:] {
		name, value, _ := strings.Cut(pair, "=")
		settings[name] = value
	}
	version := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[settings["version"]]
	config := &tls.Config{MinVersion: version, MaxVersion: version, ServerName: "example.org"}
	if settings["alpn"] != "" {
		config.NextProtos = strings.Split(settings["alpn"], ",")
	}
	if role == "server" {
		serve(address, config, settings)
	} else {
		connect(address, config, settings)
	}
}

func serve(address string, config *tls.Config, settings map[string]string) {
	pair, err := tls.LoadX509KeyPair(settings["certificate"], settings["key"])
	check(err)
	config.Certificates = []tls.Certificate{pair}
	if settings["groups"] == "P-384" {
		config.CurvePreferences = []tls.CurveID{tls.CurveP384}
	}
	listener, err := net.Listen("tcp", address)
	check(err)
	for {
		connection, err := listener.Accept()
		check(err)
		go func() {
			server := tls.Server(wrapped(connection, settings), config)
			defer server.Close()
			// The handshake is made by the first Read.
			if _, err := server.Read(make([]byte, 4096)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return
			}
			io.WriteString(server, answer)
		}()
	}
}

func connect(address string, config *tls.Config, settings map[string]string) {
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	config.RootCAs = x509.NewCertPool()
	if settings["trust"] != "" {
		pem, err := os.ReadFile(settings["trust"])
		check(err)
		config.RootCAs.AppendCertsFromPEM(pem)
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if err := once(address, config, settings); err != nil {
			fmt.Println(err)
		}
	}
}

// Limiters, multiplexers and readers of the PROXY header give TLS a connection of a type of their own.
func wrapped(connection net.Conn, settings map[string]string) net.Conn {
	if settings["wrapped"] == "yes" {
		return struct{ net.Conn }{connection}
	}
	return connection
}

func once(address string, config *tls.Config, settings map[string]string) error {
	connection, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	start := time.Now()
	client := tls.Client(wrapped(connection, settings), config)
	defer client.Close()
	if err := client.Handshake(); err != nil {
		return err
	}
	fmt.Println(time.Since(start).Microseconds())
	if _, ok := settings["alpn"]; ok {
		fmt.Println("application protocol", client.ConnectionState().NegotiatedProtocol)
	}
	if _, err := io.WriteString(client, request); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, client)
	return err
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
