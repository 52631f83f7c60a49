// Java's own TLS (JSSE), client and server. A client connects once for every line of its standard input.
// The command line is that of programs/python/settings.py.

import java.io.BufferedReader;
import java.io.FileInputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.HashMap;
import java.util.Map;
import javax.net.ssl.KeyManager;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManager;
import javax.net.ssl.TrustManagerFactory;

final class Peer {
    private static final char[] PASSWORD = "handshake".toCharArray();
    private static final byte[] REQUEST =
        "GET / HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n".getBytes(StandardCharsets.US_ASCII);
    private static final byte[] ANSWER =
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n".getBytes(StandardCharsets.US_ASCII);

    public static void main(String[] arguments) throws Exception {
        var address = InetAddress.getByName(arguments[1]);
        int port = Integer.parseInt(arguments[2]);
        Map<String, String> settings = new HashMap<>();
        for (int i = 3; i < arguments.length; i++) {
            var pair = arguments[i].split("=", 2);
            settings.put(pair[0], pair[1]);
        }
        var versions = new String[] {"TLSv" + settings.get("version")};
        if (arguments[0].equals("server")) {
            serve(address, port, settings, versions);
        } else {
            connect(new InetSocketAddress(address, port), settings, versions);
        }
    }

    private static void serve(InetAddress address, int port, Map<String, String> settings, String[] versions)
            throws Exception {
        if ("P-384".equals(settings.get("groups"))) {
            System.setProperty("jdk.tls.namedGroups", "secp384r1");
        }
        if ("no".equals(settings.get("tickets"))) {
            System.setProperty("jdk.tls.server.enableSessionTicketExtension", "false");
        }
        var store = KeyStore.getInstance("PKCS12");
        try (var file = new FileInputStream(settings.get("store"))) {
            store.load(file, PASSWORD);
        }
        var keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(store, PASSWORD);
        var context = context(keys.getKeyManagers(), null);
        var listener = (SSLServerSocket) context.getServerSocketFactory().createServerSocket(port, 16, address);
        listener.setEnabledProtocols(versions);
        while (true) {
            try (var socket = (SSLSocket) listener.accept()) {
                socket.setTcpNoDelay(true);
                socket.getInputStream().read(new byte[4096]);
                socket.getOutputStream().write(ANSWER);
            } catch (IOException error) {
                System.err.println(error.getMessage());
            }
        }
    }

    private static void connect(InetSocketAddress address, Map<String, String> settings, String[] versions)
            throws Exception {
        var store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        if (settings.containsKey("trust")) {
            try (var file = new FileInputStream(settings.get("trust"))) {
                store.setCertificateEntry("peer", CertificateFactory.getInstance("X.509").generateCertificate(file));
            }
        }
        var trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        var context = context(null, trust.getTrustManagers());
        var lines = new BufferedReader(new InputStreamReader(System.in));
        while (lines.readLine() != null) {
            try (var plain = new Socket()) {
                plain.setTcpNoDelay(true);
                plain.connect(address);
                long start = System.nanoTime();
                // The context finds the session to resume by this name and port.
                var socket = (SSLSocket) context.getSocketFactory()
                    .createSocket(plain, "example.org", address.getPort(), true);
                socket.setEnabledProtocols(versions);
                socket.startHandshake();
                System.out.println((System.nanoTime() - start) / 1000);
                OutputStream out = socket.getOutputStream();
                out.write(REQUEST);
                out.flush();
                socket.getInputStream().readAllBytes();
                socket.close();
            } catch (IOException error) {
                System.out.println(error.getMessage());
            }
        }
    }

    private static SSLContext context(KeyManager[] keys, TrustManager[] trust) throws Exception {
        var context = SSLContext.getInstance("TLS");
        context.init(keys, trust, null);
        return context;
    }
}
