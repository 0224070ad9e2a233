"""The coordinator's dashboard, of the hospitals: who was there, what they answered, why not, and their traffic."""

from charts import GREEN, RED, Board, Query, lines, timeline

HERE = 'instance=~"$instance"'
OF_SITE = f'{HERE}, site=~"$site"'


def sites(made: Board) -> None:
    """Add who was there when, what came of their answers, and their traffic."""
    made.row(
        "Hospitals",
        timeline(
            "Online",
            "When each hospital was connected.",
            Query(f"fedpath_site_online{{{OF_SITE}}}", "{{site}}"),
            words={"0": ("away", RED), "1": ("online", GREEN)},
            height=8,
        ),
        lines(
            "Silence",
            "For how long nothing was heard of each hospital. Agents send a heartbeat every 6 s; 120 s are an alert.",
            "s",
            Query(f"site:fedpath_silence:seconds{{{OF_SITE}}}", "{{site}}"),
            steps=((None, GREEN), (120, RED)),
        ),
        lines(
            "Answers by outcome",
            "What the hospitals' answers to rounds came to. Only those answered count; late ones may, with [late].",
            "none",
            Query(
                f"sum by (outcome) (increase(fedpath_site_replies_total{{{OF_SITE}}}[$__rate_interval]))", "{{outcome}}"
            ),
            bars=True,
            stacked=True,
        ),
        lines(
            "Answers that did not count",
            "Refused, lost or late, by hospital.",
            "none",
            Query(
                "sum by (site, outcome) (increase(fedpath_site_replies_total"
                f'{{{OF_SITE}, outcome!="answered"}}[$__rate_interval]))',
                "{{site}} {{outcome}}",
            ),
            bars=True,
            stacked=True,
        ),
        lines(
            "Why updates were refused",
            "By reason, of all hospitals: not_finite is NaN or infinity, norm a change that is too large, form wrong "
            "names or shapes, site a hospital that said itself that it could not.",
            "none",
            Query(
                f"sum by (reason) (increase(fedpath_update_rejected_total{{{HERE}}}[$__rate_interval]))", "{{reason}}"
            ),
            bars=True,
            stacked=True,
        ),
        lines(
            "Traffic to hospitals",
            "Bytes of orders and models, by hospital: five minutes' mean.",
            "Bps",
            Query(f'site_direction:fedpath_transfer_bytes:rate5m{{{OF_SITE}, direction="to_site"}}', "{{site}}"),
            stacked=True,
        ),
        lines(
            "Traffic from hospitals",
            "Bytes of answers and updates, by hospital: five minutes' mean.",
            "Bps",
            Query(f'site_direction:fedpath_transfer_bytes:rate5m{{{OF_SITE}, direction="from_site"}}', "{{site}}"),
            stacked=True,
        ),
        lines(
            "Clocks",
            "A hospital's clock minus the coordinator's. Over 4 s ahead or 300 s behind, its calls are refused.",
            "s",
            Query(f"fedpath_site_clock_skew_seconds{{{OF_SITE}}}", "{{site}}"),
            least=None,
        ),
        lines(
            "Kept out",
            "Hospitals that did not come into a run: contract, no patients, or a policy. The reason is in the log.",
            "none",
            Query(f"increase(fedpath_site_kept_out_total{{{OF_SITE}}}[$__rate_interval])", "{{site}}"),
            bars=True,
            stacked=True,
        ),
    )
