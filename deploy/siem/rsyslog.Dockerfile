# rsyslog as deploy/compose/siem.yml runs it: Debian's packages, which the tests of deploy/siem run
# too, with the modules that rsyslog.conf loads. Configuration and certificates are mounted.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends rsyslog rsyslog-openssl rsyslog-relp \
    && rm -rf /var/lib/apt/lists/* /etc/rsyslog.conf /etc/rsyslog.d
USER 10001:10001
EXPOSE 6514 2514
ENTRYPOINT ["/usr/sbin/rsyslogd", "-n", "-i", "NONE", "-f", "/etc/rsyslog/rsyslog.conf"]
